"""Views of a clip in evaluation: which frames (segments) and which squares of them (crops).

A test shows a model every clip several times: S segments, each a choice of frames over the whole
clip, times K crops along the longer side; `internvideo_jax.evaluation.views` merges what it says.
View s * K + k is segment s, crop k. A single view is the one of validation during training, which
upstream rounds differently.
"""

import dataclasses

import numpy as np

from internvideo_jax.data.transforms.frames import eval_frame, long_side_crops, resize_short_side
from internvideo_jax.data.transforms.sampling import Sampling, sample_indices


@dataclasses.dataclass(frozen=True)
class EvalViews:
    """How a clip is shown in a test.

    Attributes:
      num_frames: T, frames per view.
      image_size: side of the square in pixels; the frame's short side is scaled to it.
      segments: S, choices of frames.
      crops: K, squares of each; 1 is the central one.
      sampling: how frames are chosen.
      rate: frames from one to the next, for "dense".
    """

    num_frames: int
    image_size: int
    segments: int = 4
    crops: int = 3
    sampling: Sampling = "sparse"
    rate: int = 1

    def __post_init__(self) -> None:
        if self.segments < 1 or self.crops < 1:
            raise ValueError(
                f"expected at least 1 segment and 1 crop, found {self.segments} and {self.crops}"
            )
        if self.sampling == "pretraining":
            raise ValueError('"pretraining" only draws at random; test with "sparse"')
        # Refuses whatever else no clip could be sampled with.
        self.indices(1)

    def __len__(self) -> int:
        """Views per clip, S * K."""
        return self.segments * self.crops

    @property
    def is_validation(self) -> bool:
        """Whether a clip has the one view of validation."""
        return len(self) == 1

    def indices(self, num_frames: int) -> np.ndarray:
        """Frames of each segment in a clip of `num_frames`, int64 `[S, T]`."""
        return np.stack(
            [
                sample_indices(
                    self.sampling,
                    num_frames,
                    self.num_frames,
                    rate=self.rate,
                    view=None if self.is_validation else (segment, self.segments),
                )
                for segment in range(self.segments)
            ]
        )


def eval_view(frames: np.ndarray, size: int) -> np.ndarray:
    """The validation view: short side resized, centre cropped.

    Args:
      frames: uint8 `[T, H, W, 3]`.
      size: side of the square in pixels.

    Returns:
      uint8 `[T, size, size, 3]`.
    """
    return np.stack([eval_frame(frame, size) for frame in frames])


def test_views(frames: np.ndarray, size: int, crops: int) -> np.ndarray:
    """The test views of one segment: short side resized, squares along the long side.

    Args:
      frames: uint8 `[T, H, W, 3]`; a short side of `size` already is left as it is.
      size: side of the squares in pixels.
      crops: K, how many.

    Returns:
      uint8 `[K, T, size, size, 3]`.
    """
    return long_side_crops(np.stack([resize_short_side(frame, size) for frame in frames]), crops)
