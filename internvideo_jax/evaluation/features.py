"""Features of video files."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn
import jax
import numpy as np

from internvideo_jax.data import pipeline
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.sources.clips import RecordSource
from internvideo_jax.evaluation import runner
from internvideo_jax.models import video_encoder
from internvideo_jax.models.video_vit import token_grid
from internvideo_jax.preprocessing import VideoPreprocessing, normalize

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel

Kind = Literal["pooled", "tokens"]
Short = Literal["repeat", "error"]


@dataclasses.dataclass(frozen=True, eq=False)
class SampledClip:
    """The frames of a video file that a model sees.

    Attributes:
      source: path of the file.
      frames: uint8 `[T, S, S, 3]`, RGB, resized and cropped.
      frame_indices: their numbers in the file, int64 `[T]`.
      timestamps: their times in seconds, float64 `[T]`.
      num_frames: frames in the file.
      damaged_frames: frames and packets that the decoder called damaged on the way to these;
        players show such frames, too, with whatever it has put into the gaps.
    """

    source: str
    frames: np.ndarray
    frame_indices: np.ndarray
    timestamps: np.ndarray
    num_frames: int
    damaged_frames: int = 0

    @property
    def repeated_frames(self) -> int:
        """How many of the T frames are repetitions, because the file has too few."""
        return len(self.frame_indices) - len(np.unique(self.frame_indices))


@dataclasses.dataclass(frozen=True, eq=False)
class ClipFeatures:
    """What a model makes of a clip.

    Attributes:
      clip: what it saw.
      features: float32, pooled `[P]` or tokens `[N, D]` with the class token first.
      grid: patch tokens along time, height and width.
    """

    clip: SampledClip
    features: np.ndarray
    grid: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class FailedClip:
    """A file without features.

    Attributes:
      source: path of the file.
      reason: why, without the path.
    """

    source: str
    reason: str


def extract_features(
    paths: Iterable[str | os.PathLike[str]],
    model: "SavedModel",
    *,
    num_frames: int | None = None,
    kind: Kind = "pooled",
    batch_size: int = 8,
    num_threads: int | None = None,
    short: Short = "repeat",
) -> Iterator[ClipFeatures | FailedClip]:
    """Encodes video files, which are decoded ahead in threads, a bounded number at a time.

    Neither the batch size nor the number of threads changes the features beyond rounding.

    Args:
      paths: video files.
      model: a loaded model with an InternVideo2 video encoder.
      num_frames: frames per clip; by default as many as the model was made for. Other numbers
        resize the position table.
      kind: the pooled feature `[P]` or all tokens `[N, D]`.
      batch_size: clips per forward pass; the last batch is filled up, so that one program serves.
      num_threads: decoding threads; by default one per CPU core.
      short: whether a video with fewer frames than wanted repeats some or fails.

    Returns:
      Features or a failure of each file in the order of `paths`, as they come out of the batches.

    Raises:
      ValueError: the model has no video encoder, or its tubelets do not divide the frames.
    """
    encoder, _ = video_encoder(model.module, model.variables)
    preprocessing = model.preprocessing.require_video()
    num_frames, size = num_frames or preprocessing.num_frames, preprocessing.image_size
    grid = token_grid(
        (num_frames, size, size), encoder.config.tubelet_size, encoder.config.patch_size
    )
    forward = _Encoder(model.module, preprocessing, kind)
    sources = [os.fspath(path) for path in paths]

    def results() -> Iterator[ClipFeatures | FailedClip]:
        if not sources:
            return
        batches = pipeline.eval_batches(
            DataConfig(num_frames=num_frames, image_size=size),
            ("video",),
            batch_size=batch_size,
            source=RecordSource([ClipRecord(id=path, path=path) for path in sources]),
            num_threads=num_threads,
        )
        for batch, features in runner.run(forward, model.variables, batches):
            for row in np.flatnonzero(batch["index"] >= 0).tolist():
                clip = _clip(sources[batch["index"][row]], batch, row, short)
                if isinstance(clip, SampledClip):
                    yield ClipFeatures(clip, features[row], grid)
                else:
                    yield clip

    return results()


def _clip(
    source: str, batch: Mapping[str, np.ndarray], row: int, short: Short
) -> SampledClip | FailedClip:
    if not batch["valid"][row]:
        return FailedClip(source, str(batch["error"][row]))
    indices, found = batch["frame_indices"][row], int(batch["num_frames"][row])
    if short == "error" and found < len(indices):
        return FailedClip(
            source,
            f"expected a video with at least {len(indices)} frames, found {found};"
            ' ask for fewer frames or repeat some (short="repeat")',
        )
    damaged = int(batch["damaged_frames"][row])
    return SampledClip(
        source, batch["video"][row], indices, batch["timestamps"][row], found, damaged
    )


@dataclasses.dataclass(frozen=True)
class _Encoder(runner.Forward):
    """Features of uint8 clips `[B, T, S, S, 3]`: pooled `[B, P]` or tokens `[B, N, D]`."""

    module: nn.Module
    preprocessing: VideoPreprocessing
    kind: Kind

    def forward(self, variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        video = normalize(batch["video"], self.preprocessing)
        encoder, encoder_variables = video_encoder(self.module, variables)
        output: Any = encoder.apply(encoder_variables, video)
        return output.pooled if self.kind == "pooled" else output.tokens
