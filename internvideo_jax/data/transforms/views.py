"""Views of a clip in evaluation: which frames (segments) and which squares of them (crops).

A test shows a model every clip several times: S segments, each a choice of frames over the whole
clip, times K crops along the longer side; an evaluator merges what it says. View s * K + k is
segment s, crop k. A single view is the one of validation during training, which upstream rounds
differently.
"""

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.transforms.frames import center_crop, long_side_crops
from internvideo_jax.data.transforms.sampling import sample_indices


def view_indices(config: DataConfig, num_frames: int) -> np.ndarray:
    """Frames of each segment in a clip of `num_frames`, int64 `[S, T]`."""
    return np.stack(
        [
            sample_indices(
                config.sampling,
                num_frames,
                config.num_frames,
                rate=config.sampling_rate,
                view=None if _is_validation(config) else (segment, config.segments),
            )
            for segment in range(config.segments)
        ]
    )


def cut_views(config: DataConfig, frames: np.ndarray) -> np.ndarray:
    """The views of a clip.

    Args:
      config: how many there are.
      frames: of all segments, their short side `config.image_size`, uint8 `[S * T, H, W, 3]`.

    Returns:
      uint8 `[S * K, T, size, size, 3]`.
    """
    if _is_validation(config):
        return center_crop(frames, config.image_size)[None]
    segments, crops = config.segments, config.crops
    squares = long_side_crops(frames, crops)
    by_segment = squares.reshape(crops, segments, -1, *squares.shape[2:])
    views = by_segment.swapaxes(0, 1)
    return views.reshape(segments * crops, *views.shape[2:])


def _is_validation(config: DataConfig) -> bool:
    """Whether a clip has the one view of validation."""
    return config.segments == config.crops == 1
