"""What happens to pixels between a decoded clip and a model: constants and their application."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a model wants its clips; stored beside every converted model.

    Attributes:
      mean: per-channel mean (R, G, B) of pixels scaled to [0, 1].
      std: per-channel standard deviation of the same.
      image_size: side of the square crop in pixels.
      num_frames: frames per clip.
      resize: how the decoded frame's short side reaches `image_size`.
      crop: which square of it is taken.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    image_size: int = 224
    num_frames: int = 8
    resize: Literal["bilinear_short_side"] = "bilinear_short_side"
    crop: Literal["center"] = "center"


def normalize(video: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Turns uint8 pixels `[..., 3]` (0..255, RGB) into the float32 a model expects."""
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    std = jnp.asarray(preprocessing.std, jnp.float32)
    return (video.astype(jnp.float32) / 255.0 - mean) / std
