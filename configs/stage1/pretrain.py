"""Stage-1 pre-training with InternVL-6B and VideoMAEv2-g as teachers.

`configs/stage1/pretrain.py:1b` or `:6b`. Set the teachers' saved models and the data:

    --config.stage.clip_teacher_path=DIR --config.stage.mae_teacher_path=DIR
    --config.data.annotations=FILE --config.data.root=DIR

The whole batch goes through the teachers at once, which fits into 16 clips per chip of v5e and 32
of v5p (docs/stage1.md). On fewer chips set `--config.stage.teacher_batch` (clips of one pass) or
`--config.train.accumulation` (micro-batches of a step); neither changes the recipe.

Source: `scripts/pretraining/` of upstream `InternVideo2/single_modality`.
"""

from ml_collections import ConfigDict

from internvideo_jax.configs.stage1 import common
from internvideo_jax.models import stage1, teacher
from internvideo_jax.training.stages.pretrain import PretrainConfig

# Clips of an optimizer step, and stochastic depth of the last block.
RECIPES = {"1b": (4096, 0.25), "6b": (2048, 0.3)}


def get_config(name: str = "1b") -> ConfigDict:
    """The config of a size.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    batch_size, drop_path = common.choose(RECIPES, name, "stage1/pretrain.py")
    stage = PretrainConfig(
        student=stage1.stage1_student(common.encoder(name, drop_path_rate=drop_path)),
        clip_teacher=common.in_bfloat16(teacher.internvl_teacher()),
        mae_teacher=common.in_bfloat16(teacher.videomae_teacher()),
    )
    return common.alignment_run(
        "pretrain",
        stage,
        batch_size=batch_size,
        epochs=301,
        warmup=40,
        lr=1.5e-4,
        max_grad_norm=3.0,
        num_frames=16,
    )
