"""Stage-1 pre-training with InternVL-6B and VideoMAEv2-g as teachers.

`configs/stage1/pretrain.py:1b` or `:6b`. Set the teachers' saved models and the data:

    --config.stage.clip_teacher_path=DIR --config.stage.mae_teacher_path=DIR
    --config.data.annotations=FILE --config.data.root=DIR

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
    """What differs between the sizes; `teacher_batch` and `accumulation` are for memory alone."""

    batch_size: int
    drop_path: float
    teacher_batch: int
    accumulation: int


RECIPES = {
    # On v5e:16x16 (256 chips).
    "1b": Recipe(batch_size=4096, drop_path=0.25, teacher_batch=1024, accumulation=1),
    # On v5p:4x4x4 (64 chips).
    "6b": Recipe(batch_size=2048, drop_path=0.3, teacher_batch=512, accumulation=1),
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
        teacher_batch=recipe.teacher_batch,
    )
    train = TrainConfig(
        batch_size=recipe.batch_size,
        epochs=301,
        warmup_epochs=40,
        accumulation=recipe.accumulation,
        optimizer=OptimizerConfig(
            lr=1.5e-4,
            min_lr=1e-5,
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
