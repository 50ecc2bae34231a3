"""Views of a clip in evaluation: which frames (segments) and which squares of them (crops).

A test shows a model every clip several times: S segments, each a choice of frames over the whole
clip, times K crops along the longer side; an evaluator merges what it says. View s * K + k is
segment s, crop k. A single view is the one of validation during training, which upstream rounds
differently.
"""

import dataclasses

import numpy as np

from internvideo_jax.data.transforms.frames import center_crop, long_side_crops, resize_short_side
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

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """A decoded frame, uint8 `[H, W, 3]`, as `cut` takes it."""
        return resize_short_side(frame, self.image_size)

    def cut(self, frames: np.ndarray) -> np.ndarray:
        """The views of a clip.

        Args:
          frames: of all segments, resized, uint8 `[S * T, H, W, 3]`.

        Returns:
          uint8 `[S * K, T, size, size, 3]`.
        """
        if self.is_validation:
            return center_crop(frames, self.image_size)[None]
        squares = long_side_crops(frames, self.crops)
        by_segment = squares.reshape(self.crops, self.segments, -1, *squares.shape[2:])
        views = by_segment.swapaxes(0, 1)
        return views.reshape(len(self), *views.shape[2:])
