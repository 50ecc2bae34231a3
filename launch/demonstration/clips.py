"""The world's clips as the demo's models see them."""

import dataclasses
from pathlib import Path

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.pipeline import eval_batches
from internvideo_jax.data.synthetic.world import MOTIONS, SHAPES, Split, World

_BATCH = 50


@dataclasses.dataclass(frozen=True)
class Clips:
    """The clips of a split.

    Attributes:
      video: uint8 `[N, T, S, S, 3]`.
      motions: index in `world.MOTIONS`, int64 `[N]`.
      shapes: index in `world.SHAPES`, int64 `[N]`.
      looks: `Content.look`, int64 `[N]`.
    """

    video: np.ndarray
    motions: np.ndarray
    shapes: np.ndarray
    looks: np.ndarray


def cache_dir(world: World) -> Path:
    """Where the decoded frames of a world's clips are kept."""
    return world.directory / "frames"


def read_clips(world: World, split: Split, config: DataConfig) -> Clips:
    """The clips of a split by the data pipeline's evaluation view.

    Args:
      world: the files.
      split: which of them.
      config: frames and size; it names no clips.

    Raises:
      ValueError: a clip cannot be read.
    """
    config = dataclasses.replace(
        config, annotations=str(world.annotations(split)), cache_dir=str(cache_dir(world))
    )
    video = []
    for batch in eval_batches(config, ("video",), batch_size=_BATCH):
        if errors := [error for error in batch["error"] if error]:
            raise ValueError(f"expected clips of the demo's own, found {errors[0]}")
        video.append(batch["video"][batch["valid"]])
    contents = world.contents(split)
    return Clips(
        np.concatenate(video),
        motions=np.array([MOTIONS.index(content.motion) for content in contents]),
        shapes=np.array([SHAPES.index(content.shape) for content in contents]),
        looks=np.array([content.look for content in contents]),
    )
