"""Which frames of a video a model sees."""

from typing import Literal

import numpy as np


def uniform_indices(
    num_frames: int, wanted: int, short: Literal["repeat", "error"] = "repeat"
) -> np.ndarray:
    """Frames spread evenly over a whole video: one per segment, near the segment's middle.

    The video is cut into `wanted` segments of s = (num_frames - 1) / wanted frames; frame i is
    round(s * i) + floor(s / 2), halves rounded to even. A video shorter than `wanted` shows some
    frames more than once.

    Args:
      num_frames: frames in the video, at least 1.
      wanted: frames to choose, at least 1.
      short: whether a video with fewer frames than wanted repeats frames or is an error.

    Returns:
      int64 `[wanted]`, ascending, in [0, num_frames).

    Raises:
      ValueError: no frames, none wanted, or too few with `short="error"`.

    Source: the validation rule of upstream's `single_modality/datasets/kinetics_sparse.py`.
    """
    if wanted < 1:
        raise ValueError(f"expected at least 1 frame to sample, found {wanted}")
    if num_frames < 1:
        raise ValueError(f"expected a video with at least 1 frame, found {num_frames}")
    if short == "error" and num_frames < wanted:
        raise ValueError(
            f"expected a video with at least {wanted} frames, found {num_frames};"
            ' ask for fewer frames or repeat some (short="repeat")'
        )
    segment = (num_frames - 1) / wanted
    indices = np.round(segment * np.arange(wanted)) + int(segment / 2)
    return np.minimum(indices, num_frames - 1).astype(np.int64)
