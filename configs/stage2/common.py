"""What the recipes of stage 2 share."""

import dataclasses
from typing import Any

from internvideo_jax.data.config import DataConfig
from internvideo_jax.models.stage2 import Stage2Config
from internvideo_jax.training.optimizer import OptimizerConfig, PartConfig
from internvideo_jax.training.stages.cross_modal_config import CrossModalConfig


def in_bfloat16(model: Stage2Config) -> Stage2Config:
    """The model as it is trained: in bfloat16, its blocks recomputed."""
    computing: dict[str, Any] = {"dtype": "bfloat16", "remat": "full"}
    encoder = dataclasses.replace(model.vision.encoder, **computing)
    return dataclasses.replace(
        model,
        vision=dataclasses.replace(model.vision, encoder=encoder),
        text=dataclasses.replace(model.text, **computing),
        audio=model.audio and dataclasses.replace(model.audio, **computing),
    )


def adamw(lr: float, parts: tuple[PartConfig, ...] = ()) -> OptimizerConfig:
    """AdamW with the schedule of stage 2.

    Args:
      lr: peak learning rate for the batch as it is.
      parts: parameters that are trained otherwise.
    """
    return OptimizerConfig(
        lr=lr,
        min_lr=0.01 * lr,
        schedule="floored_cosine",
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.05,
        max_grad_norm=3.0,
        parts=parts,
    )


def data(stage: CrossModalConfig) -> DataConfig:
    """Clips and captions as a stage takes them."""
    encoder = stage.model.vision.encoder
    return DataConfig(
        mixture_by="batch",
        sampling="intervals",
        num_frames=encoder.num_frames,
        image_size=encoder.image_size,
        resize="bicubic_square",
        augmentation="random_resized_crop",
        max_text_length=stage.max_text_length,
    )
