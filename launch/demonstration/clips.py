"""The world's clips as the demo's models see them, decoded once."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from internvideo_jax.data.annotations.lists import read_annotations
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.pipeline import eval_batches
from internvideo_jax.data.synthetic.world import SHAPES, Content, Split, World

_BATCH = 50


@dataclasses.dataclass(frozen=True)
class Clips:
    """The clips of a split.

    Attributes:
      video: uint8 `[N, T, S, S, 3]`, mapped from disk.
      motions: index in `world.MOTIONS`, int32 `[N]`.
      looks: `Content.look`, int32 `[N]`.
      contents: everything that is known of them.
    """

    video: np.ndarray
    motions: np.ndarray
    looks: np.ndarray
    contents: list[Content]

    @property
    def shapes(self) -> np.ndarray:
        """Index in `world.SHAPES`, int32 `[N]`."""
        return np.array([SHAPES.index(content.shape) for content in self.contents], np.int32)

    def __len__(self) -> int:
        return len(self.video)


def read_clips(
    world: World,
    split: Split,
    config: DataConfig,
    *,
    report: Callable[[int], object] = lambda clips: None,
) -> Clips:
    """The clips of a split by the data pipeline's evaluation view, kept beside the files.

    Args:
      world: the files.
      split: which of them.
      config: frames and size; it names no clips.
      report: called with the number of clips decoded since the last call.

    Raises:
      ValueError: a clip cannot be read.
    """
    size, frames = config.image_size, config.num_frames
    path = world.directory / f"{split}-{frames}x{size}.npy"
    annotations, looks = world.annotations(split), world.look_annotations(split)
    records = read_annotations(annotations)
    if not path.exists():
        shape = (len(records), frames, size, size, 3)
        source = dataclasses.replace(config, annotations=str(annotations), num_classes=None)
        _decode(source, shape, path, report)
    motion_labels, look_labels = (
        np.array([record.label for record in rows], np.int32)
        for rows in (records, read_annotations(looks))
    )
    video = np.load(path, mmap_mode="r")
    return Clips(video, motion_labels, look_labels, world.contents(split))


def _decode(
    config: DataConfig, shape: tuple[int, ...], path: Path, report: Callable[[int], object]
) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        video = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        for batch in eval_batches(config, batch_size=min(_BATCH, shape[0])):
            if errors := [error for error in batch["error"] if error]:
                raise ValueError(f"expected clips of the demo's own, found {errors[0]}")
            valid = batch["valid"]
            video[batch["index"][valid]] = batch["video"][valid]
            report(int(valid.sum()))
        video.flush()
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
