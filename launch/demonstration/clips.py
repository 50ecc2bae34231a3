"""The world's clips as the demo's models see them."""

import dataclasses
from pathlib import Path

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.pipeline import eval_batches
from internvideo_jax.data.synthetic.world import MOTIONS, SHAPES, Content, Split, World

_BATCH = 50


@dataclasses.dataclass(frozen=True)
class Clips:
    """The clips of a split.

    Attributes:
      video: uint8 `[N, T, S, S, 3]`.
      contents: everything that is known of them.
    """

    video: np.ndarray
    contents: list[Content]

    @property
    def motions(self) -> np.ndarray:
        """Index in `world.MOTIONS`, int64 `[N]`."""
        return np.array([MOTIONS.index(content.motion) for content in self.contents])

    @property
    def shapes(self) -> np.ndarray:
        """Index in `world.SHAPES`, int64 `[N]`."""
        return np.array([SHAPES.index(content.shape) for content in self.contents])

    @property
    def looks(self) -> np.ndarray:
        """`Content.look`, int64 `[N]`."""
        return np.array([content.look for content in self.contents])

    def __len__(self) -> int:
        return len(self.video)


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
    return Clips(np.concatenate(video), world.contents(split))
