"""Short ways to read video files."""

from typing import NamedTuple

import numpy as np

from internvideo_jax.data.decode.video import DEFAULT_LIMITS, VideoIndex, VideoReader


class Frames(NamedTuple):
    """Frames with their times in seconds."""

    frames: np.ndarray
    timestamps: np.ndarray


def index_video(path, limits=DEFAULT_LIMITS) -> VideoIndex:
    with VideoReader(path, limits=limits) as reader:
        return reader.index


def read_frames(path, indices, transform=None, limits=DEFAULT_LIMITS) -> Frames:
    with VideoReader(path, limits=limits) as reader:
        frames = reader.read(indices, transform=transform)
        return Frames(frames, reader.index.timestamps[list(indices)])
