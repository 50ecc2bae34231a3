"""Retrieval by a stage-2 model: from clips with captions to scores of all pairs."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.data.annotations.entries import quote
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.transforms.captions import clean_caption
from internvideo_jax.data.wordpiece import WordPiece
from internvideo_jax.evaluation.rerank import (
    Candidates,
    TextTokens,
    best_candidates,
    match_scores,
    reranked,
)
from internvideo_jax.evaluation.retrieval import (
    Scores,
    cosine_similarity,
    dual_softmax,
    relevance,
    retrieval_metrics,
)
from internvideo_jax.evaluation.retrieval_options import RetrievalData, RetrievalOptions
from internvideo_jax.evaluation.runner import Evaluator, Forward, HostBatch, PyTree, Rows, collect
from internvideo_jax.models.stage2 import MediaOutput, Medium, Stage2
from internvideo_jax.models.video_vit import VideoViT, check_num_frames
from internvideo_jax.preprocessing import AudioPreprocessing, VideoPreprocessing, normalize

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.saved_model import SavedModel

# Fields that each medium is made of.
INPUTS: dict[Medium, tuple[str, ...]] = {
    "video": ("video",),
    "audio": ("audio",),
    "audio_video": ("video", "audio"),
}
# Captions without words that an error lists.
_MAX_LISTED = 5
# Texts that are encoded together.
_TEXT_ROWS = 64
# What is known already of the scores of a clip with some texts, by its place and theirs.
Finished = Callable[[int, np.ndarray], np.ndarray | None]
OnScores = Callable[[int, np.ndarray, np.ndarray], object]


@flax.struct.dataclass
class Encoded:
    """Encoded media or texts.

    Attributes:
      tokens: `[B, M, E]`; None where nobody reranks.
      embedding: `[B, C]`, not normalised.
    """

    tokens: Any
    embedding: Any


def encode_media(
    module: Stage2, variables: PyTree, medium: Medium, batch: Mapping[str, jax.Array]
) -> MediaOutput:
    """Encodes normalised clips `video` `[B, T, H, W, 3]` and filterbanks `audio` `[B, F, M]`."""

    def encode(module: Stage2) -> MediaOutput:
        parts = [
            module.encode_video(batch["video"]) if name == "video" else
            module.encode_audio(batch["audio"])
            for name in INPUTS[medium]
        ]  # fmt: skip
        return module.join(*parts) if len(parts) == 2 else parts[0]

    output: Any = module.apply(variables, method=encode)
    return MediaOutput(output.tokens, output.embedding)


@dataclasses.dataclass(frozen=True)
class TextEncoder(Forward):
    """Encodes texts `ids` and `mask`, both `[B, L]`.

    Attributes:
      module: the model.
      has_tokens: whether tokens are wanted, too.
    """

    inputs = ("ids", "mask")

    module: Stage2
    has_tokens: bool = True

    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> Encoded:
        output: Any = self.module.apply(
            variables, batch["ids"], batch["mask"], method="encode_text"
        )
        return Encoded(output.tokens if self.has_tokens else None, output.embedding)


class Texts(NamedTuple):
    """The texts of clips.

    Attributes:
      texts: each once, or once for each clip that has it.
      pairs: places of clips and of texts that belong together, int64 `[P, 2]`.
    """

    texts: tuple[str, ...]
    pairs: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Retrieved:
    """What a model says of all pairs of clips and texts.

    Attributes:
      texts: as the model read them, T of them.
      relevant: bool `[V, T]`, whether a text belongs to a clip.
      scores: by the way in which they were computed: "similarity", "dsl" and perhaps "rerank".
      num_pairs: pairs that the fusion layers have seen.
      num_cut: texts that were longer than the model takes.
    """

    texts: tuple[str, ...]
    relevant: np.ndarray
    scores: dict[str, Scores]
    num_pairs: int
    num_cut: int


@dataclasses.dataclass(frozen=True)
class RetrievalEvaluator(Evaluator):
    """How well texts find their clips, and clips their texts.

    Attributes:
      module: a stage-2 model.
      video: how it wants its clips; None where it is not asked about them.
      tokenizer: of its texts.
      options: what is measured.
    """

    task: ClassVar[str] = "retrieval"
    merging: ClassVar[str] = "mean of the tokens and of the embeddings of the views"
    references: ClassVar[tuple[str, ...]] = ("captions",)

    module: Stage2
    video: VideoPreprocessing | None
    tokenizer: WordPiece = dataclasses.field(compare=False)
    options: RetrievalOptions = dataclasses.field(default_factory=RetrievalOptions)

    def __post_init__(self) -> None:
        medium, config = self.options.medium, self.module.config
        if config.audio is None and medium != "video":
            raise ValueError(
                f"expected a model with an audio tower for medium {medium!r}, found one without;"
                " set medium to video"
            )
        if self.options.rerank and medium not in config.match_heads:
            raise ValueError(
                f"expected a model with a matching head for {medium!r}, found heads for"
                f" {', '.join(config.match_heads) or 'nothing'}; set rerank to 0"
            )
        limit, found = config.text.max_length, self.tokenizer.max_length
        if found > limit:
            raise ValueError(
                f"retrieval.max_text_length: expected at most {limit} tokens, for which the model"
                f" has positions, found {found}; set --config.retrieval.max_text_length={limit}"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        return INPUTS[self.options.medium]

    def with_model(self, model: "SavedModel") -> "RetrievalEvaluator":
        return retrieval_evaluator(model, self.options)

    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> Encoded:
        """Tokens and embeddings of uint8 views `[B, T, H, W, 3]`, filterbanks `[B, F, M]`."""
        inputs = dict(batch)
        if self.video is not None and "video" in inputs:
            inputs["video"] = normalize(inputs["video"], self.video)
        output = encode_media(self.module, variables, self.options.medium, inputs)
        return Encoded(output.tokens if self.options.rerank else None, output.embedding)

    def complete(
        self,
        rows: Rows,
        variables: PyTree,
        *,
        finished: Finished = lambda place, texts: None,
        on_scores: OnScores = lambda place, texts, scores: None,
    ) -> Rows:
        """Compares what `collect` gave with the texts, which are encoded here.

        Args:
          rows: views of clips, whose output are `Encoded`.
          variables: of the model.
          finished: looks up scores of a clip, by its place among those of `rows`, with texts.
          on_scores: told of those that were not known, with the numbers of the texts.

        Returns:
          The same with an output of `Retrieved`.
        """
        views = rows.columns["index"]
        _, first = np.unique(views, return_index=True)
        found = texts_of_clips(rows.columns["captions"][first].tolist(), self.options)
        ids, mask = self.tokenizer(found.texts)
        encoder = TextEncoder(self.module, bool(self.options.rerank))
        texts = collect(encoder, variables, _text_batches(ids, mask)).output
        embedding = merge_views(views, rows.output.embedding)
        similarity = Scores.symmetric(cosine_similarity(embedding, texts.embedding))
        scores = {"similarity": similarity, "dsl": dual_softmax(similarity)}
        num_pairs = 0
        if self.options.rerank:
            chosen = best_candidates(scores[self.options.rerank_by], self.options.rerank)
            tokens = merge_views(views, rows.output.tokens)
            logits = self._match(
                variables, tokens, TextTokens(texts.tokens, mask), chosen, finished, on_scores
            )
            scores["rerank"] = reranked(logits, chosen)
            num_pairs = int(chosen.pairs.sum())
        retrieved = Retrieved(
            found.texts,
            relevance(found.pairs, *similarity.of_texts.shape),
            scores,
            num_pairs,
            self.tokenizer.count_cut(found.texts),
        )
        return dataclasses.replace(rows, output=retrieved)

    def _match(
        self,
        variables: PyTree,
        tokens: np.ndarray,
        texts: TextTokens,
        chosen: Candidates,
        finished: Finished,
        on_scores: OnScores,
    ) -> np.ndarray:
        """Scores of the candidates, 0 of all other pairs, float32 `[V, T]`."""
        dtype = jnp.dtype(self.module.config.text.dtype)
        texts = TextTokens(texts.tokens.astype(dtype), texts.mask)
        logits = np.zeros(chosen.pairs.shape, np.float32)
        texts_of = chosen.texts_of()
        for number, own in list(texts_of.items()):
            known = finished(number, own)
            if known is not None:
                logits[number, own] = known
                del texts_of[number]
        for number, scores in match_scores(
            self.module,
            variables,
            self.options.medium,
            lambda number: np.asarray(tokens[number], dtype),
            texts,
            texts_of,
        ):
            logits[number, texts_of[number]] = scores
            on_scores(number, texts_of[number], scores)
        return logits

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Those of `retrieval_metrics`, "similarity/t2v_r1" and so on, for all kinds of scores."""
        retrieved: Retrieved = rows.output
        plain = retrieved.scores["similarity"]
        return {
            f"{kind}/{name}": value
            for kind, scores in retrieved.scores.items()
            for name, value in retrieval_metrics(
                scores, retrieved.relevant, self.options.medium, then=plain
            ).items()
        }

    def report(
        self, rows: Rows, clips: "Sequence[ClipRecord]", names: Sequence[str], directory: Path
    ) -> str:
        """That of `retrieval_report.write_report`."""
        from internvideo_jax.evaluation.retrieval_report import write_report

        del names
        return write_report(directory, rows.output, clips, self.metrics(rows))


def texts_of_clips(
    captions: Sequence[Sequence[str]],
    options: RetrievalOptions,
    clips: Sequence[str] | None = None,
) -> Texts:
    """The texts of clips as a model reads them.

    Args:
      captions: of each clip.
      options: whether they are joined, cleaned and shared.
      clips: what errors call them; by default they are counted from 1.

    Raises:
      ValueError: captions are empty, or become so; lists the first.
    """
    texts: list[str] = []
    numbers: dict[str, int] = {}
    pairs = []
    wordless = []
    for clip, own in enumerate(captions):
        for caption in [" ".join(own)] if options.paragraphs else own:
            text = clean_caption(caption) if options.clean_captions else caption
            if not text.strip():
                wordless.append(f"{quote(caption)} of clip {clips[clip] if clips else clip + 1}")
                continue
            number = len(texts)
            if options.shared_captions:
                number = numbers.setdefault(text, number)
            if number == len(texts):
                texts.append(text)
            pairs.append((clip, number))
    if wordless:
        raise ValueError(
            f"expected captions with words, found {len(wordless)} without:"
            f" {', '.join(wordless[:_MAX_LISTED])}; correct or remove them"
        )
    return Texts(tuple(texts), np.array(pairs, np.int64).reshape(-1, 2))


def retrieval_evaluator(model: "SavedModel", options: RetrievalOptions) -> RetrievalEvaluator:
    """The measurement of a saved model.

    Raises:
      ValueError: it is of another kind, or takes not what is to be found.
    """
    if not isinstance(model.module, Stage2):
        raise ValueError(
            f"expected a stage-2 model, found {type(model.module).__name__}; retrieval compares"
            " clips with texts"
        )
    text = model.preprocessing.text
    if text is None or text.tokenizer != "wordpiece":
        raise ValueError(
            "expected a stage-2 model with a WordPiece vocabulary, found one that takes"
            f" {'other' if text else 'no'} texts"
        )
    (vocabulary,) = model.tokenizer_files.values()
    tokenizer = WordPiece(Path(vocabulary), options.max_text_length or text.max_length)
    return RetrievalEvaluator(model.module, model.preprocessing.video, tokenizer, options)


def view_config(model: "SavedModel", data: RetrievalData) -> DataConfig:
    """How a stage-2 model wants the clips of a measurement.

    Raises:
      ValueError: it takes no videos, or not so many frames.
    """
    video = model.preprocessing.require_video()
    num_frames = data.num_frames or video.num_frames
    encoder = VideoViT(model.config.vision.encoder)
    check_num_frames(encoder, num_frames, "--config.eval_data.num_frames")
    return DataConfig(
        sampling="intervals",
        num_frames=num_frames,
        image_size=video.image_size,
        resize=video.resize,
        segments=data.segments,
        audio=model.preprocessing.audio or AudioPreprocessing(),
        missing_audio=data.missing_audio,
    )


def merge_views(clips: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Averages the rows of the same clip.

    Args:
      clips: number of each row's clip `[V]`, ascending.
      rows: tokens or embeddings, `[V, ...]`.

    Returns:
      `[N, ...]` by ascending number; the rows themselves where each is of another clip.
    """
    _, first, counts = np.unique(clips, return_index=True, return_counts=True)
    if len(first) == len(rows):
        return rows
    sums = np.add.reduceat(rows, first, axis=0, dtype=np.float32)
    return sums / counts.reshape(-1, *(1,) * (rows.ndim - 1)).astype(np.float32)


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
