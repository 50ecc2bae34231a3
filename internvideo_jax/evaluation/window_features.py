"""Features of the windows of long videos."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from internvideo_jax.config import check_counts
from internvideo_jax.data.windows import Windows
from internvideo_jax.data.windows_of_files import windows_of_files
from internvideo_jax.evaluation.clip_encoder import (
    Crop,
    FeatureKind,
    clip_config,
    clip_encoder,
    merged_views,
)
from internvideo_jax.evaluation.features import NOT_FINITE, FailedClip, FailedWindow

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel


@dataclasses.dataclass(frozen=True, eq=False)
class WindowFeatures:
    """What a model makes of a window.

    Attributes:
      source: path of the file.
      start: seconds after the file's start where the window begins.
      end: likewise, where it ends.
      frame_indices: which frames the model saw, int64 `[T]`.
      timestamps: when they are shown, in seconds, float64 `[T]`.
      features: float32, pooled `[P]`, tokens `[N, D]`, or an embedding `[C]`.
    """

    source: str
    start: float
    end: float
    frame_indices: np.ndarray
    timestamps: np.ndarray
    features: np.ndarray


def extract_windows(
    paths: Sequence[str | os.PathLike[str]],
    model: "SavedModel",
    windows: Windows,
    *,
    num_frames: int | None = None,
    kind: FeatureKind = "pooled",
    layer: int | None = None,
    crop: Crop | None = None,
    batch_size: int = 8,
    num_threads: int | None = None,
) -> Iterator[WindowFeatures | FailedClip]:
    """Encodes all windows of video files, which are decoded ahead in threads.

    Args:
      paths: the files; batches may hold windows of several of them.
      model: as of `features.extract_features`.
      windows: where the videos are cut.
      num_frames: frames of a window, if not as many as the model was made for.
      kind: as of `features.extract_features`, as are `layer` and `crop`.
      layer: see there.
      crop: see there.
      batch_size: views that are held together at most.
      num_threads: decoding threads; by default one per CPU core.

    Returns:
      Features or a failure (`FailedWindow`) of each window, file by file in their order; of a file
      that cannot be read, its one failure.

    Raises:
      ValueError: as of `features.extract_features`.
    """
    check_counts(num_frames=num_frames, batch_size=batch_size)
    config = clip_config(model, num_frames, crop, kind)
    forward = clip_encoder(model, kind, layer)
    names = [os.fspath(path) for path in paths]

    def results() -> Iterator[WindowFeatures | FailedClip]:
        batches = windows_of_files(
            names, config, windows, batch_size=batch_size, num_threads=num_threads
        )
        views = config.segments * config.crops
        for batch, row, features in merged_views(forward, model.variables, batches, views):
            name = names[int(batch["file"][row])]
            start, end = float(batch["start"][row]), float(batch["end"][row])
            error = str(batch["error"][row])
            if np.isnan(start):
                yield FailedClip(name, error)
            elif error or not np.isfinite(features).all():
                yield FailedWindow(name, error or NOT_FINITE, start, end)
            else:
                indices, seconds = batch["frame_indices"][row], batch["timestamps"][row]
                yield WindowFeatures(name, start, end, indices, seconds, features)

    return results()
