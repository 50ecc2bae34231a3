"""Distillation of InternVideo2-1B (stage 2) into a small encoder.

`configs/stage1/distill.py:s14`, `:b14` or `:l14`. Set the teacher's saved model and the data:

    --config.stage.teacher_path=DIR --config.data.annotations=FILE --config.data.root=DIR

Source: `scripts/distillation/` of upstream `InternVideo2/single_modality`.
"""

import dataclasses

from ml_collections import ConfigDict

from internvideo_jax.configs.stage1 import common
from internvideo_jax.data.config import DataConfig
from internvideo_jax.models import stage1, teacher
from internvideo_jax.training.config import OptimizerConfig, TrainConfig
from internvideo_jax.training.stages.distill import DistillConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the sizes."""

    batch_size: int


RECIPES = {
    "s14": Recipe(batch_size=4096),
    "b14": Recipe(batch_size=4096),
    "l14": Recipe(batch_size=2048),
}


def get_config(name: str = "b14") -> ConfigDict:
    """The config of a size.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    recipe: Recipe = common.choose(RECIPES, name, "distill.py")
    teacher_encoder = dataclasses.replace(common.SIZES["1b"](), dtype="bfloat16")
    stage = DistillConfig(
        student=stage1.distill_student(common.encoder(name, drop_path_rate=0.05)),
        teacher=teacher.internvideo2_teacher(teacher_encoder),
    )
    train = TrainConfig(
        batch_size=recipe.batch_size,
        epochs=101,
        warmup_epochs=20,
        optimizer=OptimizerConfig(
            lr=common.scaled(1e-3, recipe.batch_size),
            min_lr=common.scaled(1e-5, recipe.batch_size),
            warmup_lr=0.0,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.05,
            max_grad_norm=5.0,
        ),
    )
    data = DataConfig(
        format="pretrain",
        sampling="pretraining",
        num_frames=8,
        sampling_rate=1,
        augmentation="pretraining",
        flip=True,
    )
    return common.run_config("distill", stage, train, data, None)
