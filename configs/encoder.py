"""A model of stage 1 on a device mesh, for `compile_report`.

`configs/encoder.py:SIZE[,KIND]` with SIZE one of s14, b14, l14, 1b, 6b and KIND one of
  encoder     the video encoder on all tokens (default)
  classifier  the encoder with a linear head of 400 classes
  student     the pre-training student on the tokens that its masks keep
  distill     the distillation student
  teacher     the encoder as the frozen teacher of distillation
or `configs/encoder.py:internvl_6b` (one image counts as a clip), `configs/encoder.py:videomae_g`:
the frozen teachers of pre-training.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, config_dict

from internvideo_jax.config import to_dict
from internvideo_jax.configs.stage1.common import SIZES, in_bfloat16
from internvideo_jax.models import stage1, teacher, video_vit
from internvideo_jax.models.video_classifier import VideoClassifierConfig
from internvideo_jax.nn.stack import Remat

# Architecture name, its config from the encoder's, and whether it is trained.
_KINDS: dict[str, tuple[str, Callable[[video_vit.VideoViTConfig], Any], bool]] = {
    "encoder": ("video_vit", lambda encoder: encoder, True),
    "classifier": ("video_classifier", lambda e: VideoClassifierConfig(e, 400), True),
    "student": ("stage1_student", stage1.stage1_student, True),
    "distill": ("distill_student", stage1.distill_student, True),
    "teacher": ("teacher", teacher.internvideo2_teacher, False),
}
_TEACHERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "internvl_6b": ("teacher", teacher.internvl_teacher),
    "videomae_g": ("videomae_teacher", teacher.videomae_teacher),
}


def get_config(model: str = "1b") -> ConfigDict:
    """The config of a model called `SIZE[,KIND]`, or of a teacher of pre-training.

    Raises:
      ValueError: there is no such size, kind or teacher.
    """
    size, kind = model.split(",", 1) if "," in model else (model, "encoder")
    if model in _TEACHERS:
        architecture, make_config = _TEACHERS[model]
        model_config, is_trained = in_bfloat16(make_config()), False
    elif size in SIZES and kind in _KINDS:
        architecture, from_encoder, is_trained = _KINDS[kind]
        # Activations of all blocks would not fit at the training batch.
        remat: Remat = "full" if is_trained else "none"
        encoder = dataclasses.replace(SIZES[size](), dtype="bfloat16", remat=remat)
        model_config = from_encoder(encoder)
    else:
        raise ValueError(
            f"expected SIZE[,KIND] with SIZE of {', '.join(SIZES)} and KIND of"
            f" {', '.join(_KINDS)}, or {' or '.join(_TEACHERS)}; found {model!r}"
        )

    config = ConfigDict()
    config.model = ConfigDict({"architecture": architecture, "config": to_dict(model_config)})
    # Clips on each device; devices of one tensor or context group share theirs.
    config.batch_per_device = 8
    # Whether the loss with its gradients is compiled too.
    config.gradient = is_trained
    config.mesh = ConfigDict({"data": -1, "tensor": 1, "context": 1})
    # Unset: 16 or 8 devices of a larger slice (see `parallel.mesh.default_fsdp`).
    config.mesh.fsdp = config_dict.placeholder(int)
    return config
