"""Towers and composites of the InternVideo family, as pure functions of (variables, inputs).

A model file lists what it offers in its `ARCHITECTURES`; here they come together.
"""

import importlib
import pkgutil
from typing import Any

from internvideo_jax.models.architecture import (
    Architecture,
    Tower,
    abstract_variables,
    gradient_flops,
    product_flops,
)
from internvideo_jax.models.stage1 import (
    DistillStudent,
    DistillStudentConfig,
    Stage1Student,
    Stage1StudentConfig,
)
from internvideo_jax.models.teacher import (
    Teacher,
    TeacherConfig,
    VideoMAETeacher,
    VideoMAETeacherConfig,
)
from internvideo_jax.models.video_classifier import VideoClassifier, VideoClassifierConfig
from internvideo_jax.models.video_vit import VideoViT, VideoViTConfig, encode, video_encoder
from internvideo_jax.models.videomae import VideoMAE, VideoMAEConfig

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "DistillStudent",
    "DistillStudentConfig",
    "Stage1Student",
    "Stage1StudentConfig",
    "Teacher",
    "TeacherConfig",
    "Tower",
    "VideoClassifier",
    "VideoClassifierConfig",
    "VideoMAE",
    "VideoMAEConfig",
    "VideoMAETeacher",
    "VideoMAETeacherConfig",
    "VideoViT",
    "VideoViTConfig",
    "abstract_variables",
    "build",
    "encode",
    "gradient_flops",
    "product_flops",
    "video_encoder",
]


def _collect() -> dict[str, Architecture]:
    found: dict[str, Architecture] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for name, entry in getattr(
            importlib.import_module(module.name), "ARCHITECTURES", {}
        ).items():
            if name in found:
                raise ValueError(f"architecture {name!r} is listed twice, also in {module.name}")
            found[name] = entry
    return found


ARCHITECTURES = _collect()


def build(config: Any) -> Tower:
    """The module of a config.

    Raises:
      TypeError: it is not the config of one of `ARCHITECTURES`.
    """
    for architecture in ARCHITECTURES.values():
        if type(config) is architecture.config_cls:
            return architecture.module_cls(config)
    raise TypeError(f"expected the config of a model, found {type(config).__name__}")
