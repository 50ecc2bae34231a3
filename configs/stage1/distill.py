"""Distillation of InternVideo2-1B (stage 2) into a small encoder.

`configs/stage1/distill.py:s14`, `:b14` or `:l14`. Set the teacher's saved model and the data:

    --config.stage.teacher_path=DIR --config.data.annotations=FILE --config.data.root=DIR

Source: `scripts/distillation/` of upstream `InternVideo2/single_modality`.
"""

from ml_collections import ConfigDict

from internvideo_jax.configs.stage1 import common
from internvideo_jax.models import stage1, teacher
from internvideo_jax.training.stages.distill import DistillConfig

# Clips of an optimizer step.
RECIPES = {"s14": 4096, "b14": 4096, "l14": 2048}


def get_config(name: str = "b14") -> ConfigDict:
    """The config of a size.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    batch_size: int = common.choose(RECIPES, name, "stage1/distill.py")
    stage = DistillConfig(
        student=stage1.distill_student(common.encoder(name, drop_path_rate=0.05)),
        teacher=common.in_bfloat16(teacher.internvideo2_teacher(common.SIZES["1b"]())),
    )
    return common.alignment_run(
        "distill",
        stage,
        batch_size=batch_size,
        epochs=101,
        warmup=20,
        lr=1e-3,
        max_grad_norm=5.0,
        num_frames=8,
    )
