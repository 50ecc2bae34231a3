"""Clips and texts through a dual encoder: embeddings that are compared, tokens that are fused."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Int

from internvideo_jax.config import check_counts
from internvideo_jax.data import pipeline
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.sources.given import Clip, GivenSource
from internvideo_jax.data.tokenizers import Tokenizer, tokenizer_of
from internvideo_jax.evaluation import runner
from internvideo_jax.evaluation.features import NOT_FINITE, FailedClip
from internvideo_jax.evaluation.runner import Forward, HostBatch, PyTree
from internvideo_jax.models.dual_encoder import DualEncoder, Embedded, Medium
from internvideo_jax.models.video_vit import check_num_frames
from internvideo_jax.preprocessing import VideoPreprocessing, normalize

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel

# Fields that each medium is made of.
INPUTS: dict[Medium, tuple[str, ...]] = {
    "video": ("video",),
    "audio": ("audio",),
    "audio_video": ("video", "audio"),
}
# Texts that are encoded together.
_TEXT_ROWS = 64


def encode_media(
    module: DualEncoder,
    variables: PyTree,
    medium: Medium,
    batch: Mapping[str, jax.Array],
    *,
    has_tokens: bool = True,
) -> Embedded:
    """Encodes normalised clips `video` `[B, T, H, W, 3]` and filterbanks `audio` `[B, F, M]`.

    Args:
      module: the model, which has the medium.
      variables: its variables.
      medium: what is encoded.
      batch: its `INPUTS`.
      has_tokens: whether tokens are wanted, too, which only models have that match.
    """

    def encode(module: Any) -> Any:
        parts = [
            module.encode_video(batch["video"]) if name == "video" else
            module.encode_audio(batch["audio"])
            for name in INPUTS[medium]
        ]  # fmt: skip
        return module.join(*parts) if len(parts) == 2 else parts[0]

    output: Any = module.apply(variables, method=encode)
    return Embedded(output.tokens if has_tokens else None, output.embedding)


@dataclasses.dataclass(frozen=True)
class ClipEncoder(Forward):
    """Encodes clips `video`, uint8 `[B, T, S, S, 3]`.

    Attributes:
      module: the model.
      preprocessing: how it wants them.
      has_tokens: whether tokens are wanted, too.
    """

    module: DualEncoder
    preprocessing: VideoPreprocessing
    has_tokens: bool = False

    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> Embedded:
        inputs = {"video": normalize(batch["video"], self.preprocessing)}
        return encode_media(self.module, variables, "video", inputs, has_tokens=self.has_tokens)


@dataclasses.dataclass(frozen=True)
class TextEncoder(Forward):
    """Encodes texts `ids` and `mask`, both `[B, L]`.

    Attributes:
      module: the model.
      has_tokens: whether tokens are wanted, too.
    """

    inputs = ("ids", "mask")

    module: DualEncoder
    has_tokens: bool = True

    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> Embedded:
        output: Any = self.module.apply(
            variables, batch["ids"], batch["mask"], method="encode_text"
        )
        return Embedded(output.tokens if self.has_tokens else None, output.embedding)


def dual_encoder(model: "SavedModel") -> DualEncoder:
    """The module of a model that compares clips with texts.

    Raises:
      ValueError: it is of another kind.
    """
    if not isinstance(model.module, DualEncoder):
        raise ValueError(
            f"expected a model that compares clips with texts, found {type(model.module).__name__},"
            " which does not: take one of stage 2 or of the CLIP family (`internvideo-jax convert"
            " --list`); features of clips alone gives `model.encode`"
        )
    return model.module


def text_tokenizer(model: "SavedModel", max_length: int | None = None) -> Tokenizer:
    """What cuts texts into the ids that a model takes.

    Args:
      model: a saved model that takes texts.
      max_length: tokens of a text, if not as many as it was made for.

    Raises:
      ValueError: the model was saved without its tokenizer, or a file of it is none.
    """
    text = model.preprocessing.text
    if text is None:
        raise ValueError(
            f"expected a model with its tokenizer, found {type(model.module).__name__} without;"
            " convert it again, with --tokenizer=FOLDER where the tokenizer's files do not lie"
            " beside the checkpoint"
        )
    return tokenizer_of(text, model.tokenizer_files, max_length)


def clip_views(
    model: "SavedModel",
    *,
    num_frames: int | None = None,
    segments: int = 1,
    option: str = "num_frames",
) -> DataConfig:
    """How clips are shown to a dual encoder: a frame from the middle of each of T intervals.

    Args:
      model: it.
      num_frames: T, if not as many as the model was made for.
      segments: choices of frames.
      option: what errors call `num_frames`.

    Raises:
      ValueError: the model takes no videos, or its tubelets do not divide the frames.
    """
    video = model.preprocessing.require_video()
    check_num_frames(model.module, num_frames or video.num_frames, option)
    return DataConfig(
        sampling="intervals",
        num_frames=num_frames or video.num_frames,
        image_size=video.image_size,
        resize=video.resize,
        segments=segments,
    )


def embed_clips(
    clips: Iterable[Clip],
    model: "SavedModel",
    *,
    num_frames: int | None = None,
    has_tokens: bool = False,
    batch_size: int = 8,
    num_threads: int | None = None,
) -> Iterator[Embedded | FailedClip]:
    """Encodes clips, which are decoded ahead in threads, a bounded number at a time.

    Args:
      clips: paths of videos, or frames uint8 `[T, H, W, 3]`.
      model: a saved dual encoder, on a device or spread over a mesh.
      num_frames: frames per clip, if not as many as the model was made for.
      has_tokens: whether tokens are wanted, too.
      batch_size: clips that are held together at most.
      num_threads: decoding threads; by default one per CPU core.

    Returns:
      What each clip became, in their order, as they come out of the batches: an embedding `[C]`,
      and tokens `[M, E]`, float32; or why there is none.

    Raises:
      ValueError: another kind of model, its tubelets do not divide the frames, an argument that
        counts is not a whole number of at least 1, or frames in memory are of another layout, dtype
        or range.
    """
    check_counts(num_frames=num_frames, batch_size=batch_size)
    module, video = dual_encoder(model), model.preprocessing.require_video()
    views = clip_views(model, num_frames=num_frames)
    forward, source = ClipEncoder(module, video, has_tokens), GivenSource(clips)

    def results() -> Iterator[Embedded | FailedClip]:
        if not len(source):
            return
        batches = pipeline.eval_batches(
            views, forward.inputs, batch_size=batch_size, source=source, num_threads=num_threads
        )
        for batch, output in runner.run(forward, model.variables, batches):
            for row, index in enumerate(batch["index"].tolist()):
                name = source.records[index].path
                own = jax.tree.map(lambda x, row=row: x[row], output)
                if not batch["valid"][row]:
                    yield FailedClip(name, str(batch["error"][row]))
                elif not np.isfinite(own.embedding).all():
                    yield FailedClip(name, NOT_FINITE)
                else:
                    yield own

    return results()


def embed_texts(
    ids: Int[np.ndarray, "T L"],
    mask: Int[np.ndarray, "T L"],
    module: DualEncoder,
    variables: PyTree,
    *,
    has_tokens: bool = False,
    on_texts: Callable[[int], object] = lambda count: None,
) -> Embedded:
    """Encodes texts; of several processes, each its share, and all have the result.

    Args:
      ids: of the tokenizer, at least one row.
      mask: 0 at padding.
      module: the model.
      variables: on a device or a mesh.
      has_tokens: whether tokens are wanted, too.
      on_texts: told how many more are done.

    Returns:
      Embeddings `[T, C]` and tokens `[T, L, D]`, float32.
    """
    encoder = TextEncoder(module, has_tokens)
    output: Embedded = runner.collect(
        encoder, variables, _text_batches(ids, mask), on_clips=on_texts
    ).output
    return output


def _text_batches(ids: np.ndarray, mask: np.ndarray) -> Iterator[HostBatch]:
    """Texts as the runner takes them; of several processes, each has its share."""
    count, process = jax.process_count(), jax.process_index()
    for start in range(0, len(ids), _TEXT_ROWS * count):
        wanted = start + process + count * np.arange(_TEXT_ROWS)
        is_one = wanted < len(ids)
        if count == 1:
            wanted, is_one = wanted[is_one], is_one[is_one]
        rows = np.minimum(wanted, len(ids) - 1)
        nothing = np.zeros(len(rows), np.int32)
        yield {
            "ids": ids[rows],
            "mask": mask[rows],
            "index": np.where(is_one, rows, -1),
            "segment": nothing,
            "crop": nothing,
            "valid": is_one,
            "error": np.full(len(rows), ""),
        }
