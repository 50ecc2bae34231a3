"""Features of clips and sounds."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import flax.linen as nn
import jax
import numpy as np

from internvideo_jax.config import check_counts
from internvideo_jax.data import pipeline
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.sources.given import Clip, GivenSource
from internvideo_jax.evaluation import runner
from internvideo_jax.evaluation.clip_encoder import (
    Crop,
    FeatureKind,
    Kind,
    clip_config,
    clip_encoder,
    merged_views,
)
from internvideo_jax.models import video_encoder
from internvideo_jax.models.video_vit import token_grid

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel

__all__ = [
    "NOT_FINITE",
    "ClipFeatures",
    "FailedClip",
    "FailedWindow",
    "Kind",
    "SampledClip",
    "Short",
    "extract_features",
    "extract_sound_features",
]

Short = Literal["repeat", "error"]

# Why there is no result of a clip that could be read.
NOT_FINITE = (
    "expected a result of finite numbers, found NaN or infinities; the model's weights may hold"
    " some, or compute in float32"
)


@dataclasses.dataclass(frozen=True, eq=False)
class SampledClip:
    """The frames of a video file that a model sees.

    Attributes:
      source: path of the file, or what its frames are called ("clip 3").
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
      features: float32, pooled `[P]`, tokens `[N, D]` with the class token first, or an embedding
        `[C]`.
      grid: patch tokens along time, height and width; None of an embedding.
    """

    clip: SampledClip
    features: np.ndarray
    grid: tuple[int, int, int] | None


@dataclasses.dataclass(frozen=True)
class FailedClip:
    """A clip without a result.

    Attributes:
      source: path of the file.
      reason: why, without the path.
    """

    source: str
    reason: str


@dataclasses.dataclass(frozen=True)
class FailedWindow(FailedClip):
    """A window without a result.

    Attributes:
      start: seconds after the file's start where it begins.
      end: likewise, where it ends.
    """

    start: float
    end: float


def extract_features(
    clips: Iterable[Clip],
    model: "SavedModel",
    *,
    num_frames: int | None = None,
    kind: FeatureKind = "pooled",
    layer: int | None = None,
    crop: Crop | None = None,
    batch_size: int = 8,
    num_threads: int | None = None,
    short: Short = "repeat",
) -> Iterator[ClipFeatures | FailedClip]:
    """Encodes clips, which are decoded ahead in threads, a bounded number at a time.

    Neither the batch size nor the number of threads changes the features beyond rounding.

    Args:
      clips: paths of video files, or frames uint8 `[T, H, W, 3]`.
      model: a loaded model with an InternVideo2 video encoder, or, for embeddings, one that
        compares clips with texts.
      num_frames: frames per clip; by default as many as the model was made for. Other numbers
        resize the position table.
      kind: the pooled feature `[P]`, all tokens `[N, D]`, or the embedding `[C]`, which is not
        normalised.
      layer: number of the block, from 0, whose tokens are meant; None is the last.
      crop: what of each frame is shown: its central square, all of it (squashed to a square), or
        three squares along the longer side, whose features are averaged; None as the model was made
        for.
      batch_size: clips that are held together at most; see `runner.rows_per_program` for how many
        a device takes at once.
      num_threads: decoding threads; by default one per CPU core.
      short: whether a video with fewer frames than wanted repeats some or fails.

    Returns:
      Features or a failure of each clip in the order of `clips`, as they come out of the batches.

    Raises:
      ValueError: the model has nothing of that kind, its tubelets do not divide the frames, or
        frames in memory are of another layout, dtype or range.
    """
    check_counts(num_frames=num_frames, batch_size=batch_size)
    config = clip_config(model, num_frames, crop, kind)
    forward = clip_encoder(model, kind, layer)
    source = GivenSource(clips)
    grid = None
    if kind != "embedding":
        shape = video_encoder(model.module, model.variables)[0].config
        clip = (config.num_frames, config.image_size, config.image_size)
        grid = token_grid(clip, shape.tubelet_size, shape.patch_size)

    def results() -> Iterator[ClipFeatures | FailedClip]:
        for name, batch, row, features in _encoded(
            forward, model, config, source, batch_size, num_threads
        ):
            clip = _clip(name, batch, row, short)
            if isinstance(clip, FailedClip):
                yield clip
            elif np.isfinite(features).all():
                yield ClipFeatures(clip, features, grid)
            else:
                yield FailedClip(name, NOT_FINITE)

    return results()


def extract_sound_features(
    paths: Iterable[str | os.PathLike[str]],
    model: "SavedModel",
    *,
    kind: Kind = "pooled",
    batch_size: int = 8,
    num_threads: int | None = None,
) -> Iterator[np.ndarray | FailedClip]:
    """Encodes the sound of files by an audio tower; a longer one by its middle.

    Args:
      paths: files of sound, or of video with sound.
      model: a loaded model that takes sound.
      kind: the pooled feature `[D]` or all tokens `[N, D]`.
      batch_size: sounds that are held together at most.
      num_threads: decoding threads; by default one per CPU core.

    Returns:
      Features, float32, or a failure of each file in the order of `paths`.

    Raises:
      ValueError: the model takes no sound, or no such batches are possible.
    """
    check_counts(batch_size=batch_size)
    preprocessing = model.preprocessing.audio
    if preprocessing is None:
        raise ValueError("expected a model that takes sound, found none of that kind")
    config, forward = DataConfig(audio=preprocessing), _SoundEncoder(model.module, kind)
    source = GivenSource(paths)

    def results() -> Iterator[np.ndarray | FailedClip]:
        for name, batch, row, features in _encoded(
            forward, model, config, source, batch_size, num_threads
        ):
            if not batch["valid"][row]:
                yield FailedClip(name, str(batch["error"][row]))
            elif np.isfinite(features).all():
                yield features
            else:
                yield FailedClip(name, NOT_FINITE)

    return results()


def _encoded(
    forward: runner.Forward,
    model: "SavedModel",
    config: DataConfig,
    source: GivenSource,
    batch_size: int,
    num_threads: int | None,
) -> Iterator[tuple[str, runner.HostBatch, int, np.ndarray]]:
    """The name of each clip, its batch and row, and what the forward pass made of it."""
    if not len(source):
        return
    batches = pipeline.eval_batches(
        config, forward.inputs, batch_size=batch_size, source=source, num_threads=num_threads
    )
    views = config.segments * config.crops
    for batch, row, output in merged_views(forward, model.variables, batches, views):
        yield source.records[int(batch["index"][row])].path, batch, row, output


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
class _SoundEncoder(runner.Forward):
    """Features of filterbanks `[B, T, M]`: pooled `[B, D]` or tokens `[B, N, D]`."""

    inputs: ClassVar[tuple[str, ...]] = ("audio",)

    module: nn.Module
    kind: Kind

    def forward(self, variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        output: Any = self.module.apply(variables, batch["audio"])
        return output.pooled if self.kind == "pooled" else output.tokens
