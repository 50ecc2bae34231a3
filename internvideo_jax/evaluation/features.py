"""Features of video files: decode in threads, encode in batches."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.data.decode.video import DEFAULT_LIMITS, Limits, VideoError, VideoReader
from internvideo_jax.data.transforms.frames import eval_frame
from internvideo_jax.data.transforms.sampling import uniform_indices
from internvideo_jax.environment import usable_cpus
from internvideo_jax.evaluation.ahead import map_ahead
from internvideo_jax.models import encode, video_encoder
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
      error: why; a `VideoError` unless the clip is too short or too elongated.
    """

    source: str
    error: ValueError

    @property
    def reason(self) -> str:
        """The error's message without the path."""
        return self.error.reason if isinstance(self.error, VideoError) else str(self.error)


def sample_clip(
    path: str | os.PathLike[str],
    num_frames: int,
    image_size: int,
    *,
    short: Short = "repeat",
    limits: Limits = DEFAULT_LIMITS,
) -> SampledClip:
    """Reads the evaluation view of a video file: frames spread evenly, short side resized, centre.

    Args:
      path: the file.
      num_frames: T, frames to sample.
      image_size: S, side of the square in pixels.
      short: whether a video with fewer frames repeats some or is an error.
      limits: what reading may cost.

    Raises:
      ValueError: a `VideoError`, a file too short, or a picture too elongated.
    """
    with VideoReader(path, limits=limits) as reader:
        available = reader.index.num_frames
        indices = uniform_indices(available, num_frames, short)
        transform = functools.partial(eval_frame, size=image_size)
        frames, timestamps = reader.read(indices, transform=transform)
        damaged = reader.damaged_frames
    return SampledClip(os.fspath(path), frames, indices, timestamps, available, damaged)


def extract_features(
    paths: Iterable[str | os.PathLike[str]],
    model: "SavedModel",
    *,
    num_frames: int | None = None,
    kind: Kind = "pooled",
    batch_size: int = 8,
    num_threads: int | None = None,
    short: Short = "repeat",
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[ClipFeatures | FailedClip]:
    """Encodes video files one by one, as they come out of the batches.

    Files are decoded ahead in threads, a bounded number at a time, so that `paths` may be long.
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
      limits: what reading one file may cost.

    Returns:
      Features in the order of `paths`; failures come as soon as they are met.

    Raises:
      ValueError: the model has no video encoder, or its tubelets do not divide the frames.
    """
    encoder, _ = video_encoder(model.module, model.variables)
    preprocessing = model.preprocessing.require_video()
    num_frames = num_frames or preprocessing.num_frames
    size = preprocessing.image_size
    grid = token_grid(
        (num_frames, size, size), encoder.config.tubelet_size, encoder.config.patch_size
    )
    sample = functools.partial(
        _try_sample, num_frames=num_frames, image_size=size, short=short, limits=limits
    )
    forward = functools.partial(
        _forward, model.variables, module=model.module, preprocessing=preprocessing, kind=kind
    )

    def results() -> Iterator[ClipFeatures | FailedClip]:
        batch: list[SampledClip] = []
        for clip in map_ahead(sample, paths, num_threads or usable_cpus(), 2 * batch_size):
            if isinstance(clip, FailedClip):
                yield clip
                continue
            batch.append(clip)
            if len(batch) == batch_size:
                yield from _encode(forward, batch, batch_size, grid)
                batch = []
        if batch:
            yield from _encode(forward, batch, batch_size, grid)

    return results()


@functools.partial(jax.jit, static_argnames=("module", "preprocessing", "kind"))
def _forward(
    variables: dict[str, Any],
    video: jax.Array,
    *,
    module: nn.Module,
    preprocessing: VideoPreprocessing,
    kind: Kind,
) -> jax.Array:
    output = encode(module, variables, normalize(video, preprocessing))
    return (output.pooled if kind == "pooled" else output.tokens).astype(jnp.float32)


def _encode(
    forward: Any, batch: list[SampledClip], batch_size: int, grid: tuple[int, int, int]
) -> Iterator[ClipFeatures]:
    padding = [batch[-1].frames] * (batch_size - len(batch))
    features = np.asarray(forward(np.stack([clip.frames for clip in batch] + padding)))
    for clip, row in zip(batch, features, strict=False):
        yield ClipFeatures(clip, row, grid)


def _try_sample(path: str | os.PathLike[str], **options: Any) -> SampledClip | FailedClip:
    try:
        return sample_clip(path, **options)
    except ValueError as error:
        return FailedClip(os.fspath(path), error)
