"""Stage-1 pre-training with InternVL-6B and VideoMAEv2-g as teachers.

`configs/stage1/pretrain.py:1b` or `:6b`. Set the teachers' saved models and the data:

    --config.stage.clip_teacher_path=DIR --config.stage.mae_teacher_path=DIR
    --config.data.annotations=FILE --config.data.root=DIR

The whole batch goes through the teachers at once, which fits into 16 clips per chip of v5e and 32
of v5p (docs/stage1.md). On fewer chips set `--config.stage.teacher_batch` (clips of one pass) or
`--config.train.accumulation` (micro-batches of a step); neither changes the recipe.

Source: `scripts/pretraining/` of upstream `InternVideo2/single_modality`.
"""

import dataclasses

from ml_collections import ConfigDict

from internvideo_jax.configs.stage1 import common
from internvideo_jax.data.config import DataConfig
from internvideo_jax.models import stage1, teacher
from internvideo_jax.training.config import OptimizerConfig, TrainConfig
from internvideo_jax.training.stages.pretrain import PretrainConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the sizes."""

    batch_size: int
    drop_path: float


RECIPES = {
    "1b": Recipe(batch_size=4096, drop_path=0.25),
    "6b": Recipe(batch_size=2048, drop_path=0.3),
}


def get_config(name: str = "1b") -> ConfigDict:
    """The config of a size.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    recipe: Recipe = common.choose(RECIPES, name, "pretrain.py")
    clip_teacher, mae_teacher = teacher.internvl_teacher(), teacher.videomae_teacher()
    stage = PretrainConfig(
        student=stage1.stage1_student(common.encoder(name, drop_path_rate=recipe.drop_path)),
        clip_teacher=dataclasses.replace(
            clip_teacher, encoder=dataclasses.replace(clip_teacher.encoder, dtype="bfloat16")
        ),
        mae_teacher=dataclasses.replace(
            mae_teacher, encoder=dataclasses.replace(mae_teacher.encoder, dtype="bfloat16")
        ),
    )
    train = TrainConfig(
        batch_size=recipe.batch_size,
        epochs=301,
        warmup_epochs=40,
        optimizer=OptimizerConfig(
            lr=common.scaled(1.5e-4, recipe.batch_size),
            min_lr=common.scaled(1e-5, recipe.batch_size),
            warmup_lr=0.0,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.05,
            max_grad_norm=3.0,
        ),
    )
    data = DataConfig(
        format="pretrain",
        sampling="pretraining",
        num_frames=16,
        sampling_rate=1,
        augmentation="pretraining",
        flip=True,
    )
    return common.run_config("pretrain", stage, train, data, None)
