"""Retrieval by a dual encoder: from clips with captions to scores of all pairs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.tokenizers import Tokenizer
from internvideo_jax.evaluation.embeddings import (
    INPUTS,
    clip_views,
    dual_encoder,
    embed_texts,
    encode_media,
    text_tokenizer,
)
from internvideo_jax.evaluation.retrieval.metrics import (
    Scores,
    cosine_similarity,
    dual_softmax,
    relevance,
    retrieval_metrics,
)
from internvideo_jax.evaluation.retrieval.options import (
    NUM_CANDIDATES,
    RetrievalData,
    RetrievalOptions,
)
from internvideo_jax.evaluation.retrieval.rerank import (
    Candidates,
    TextTokens,
    best_candidates,
    match_scores,
    reranked,
)
from internvideo_jax.evaluation.retrieval.texts import texts_of_clips
from internvideo_jax.evaluation.runner import Evaluator, PyTree, Rows
from internvideo_jax.models.dual_encoder import DualEncoder, Embedded
from internvideo_jax.preprocessing import AudioPreprocessing, VideoPreprocessing, normalize

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.saved_model import SavedModel

# What is known already of the scores of a clip with some texts, by its place and theirs.
Finished = Callable[[int, np.ndarray], np.ndarray | None]
OnScores = Callable[[int, np.ndarray, np.ndarray], object]


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
      module: the model.
      video: how it wants its clips; None where it is not asked about them.
      tokenizer: of its texts.
      options: what is measured.
    """

    task: ClassVar[str] = "retrieval"
    merging: ClassVar[str] = "mean of the tokens and of the embeddings of the views"
    references: ClassVar[tuple[str, ...]] = ("captions",)

    module: DualEncoder
    video: VideoPreprocessing | None
    tokenizer: Tokenizer = dataclasses.field(compare=False)
    options: RetrievalOptions = dataclasses.field(default_factory=RetrievalOptions)

    def __post_init__(self) -> None:
        medium, module = self.options.medium, self.module
        if medium not in module.media:
            raise ValueError(
                f"expected a model with an audio tower for medium {medium!r}, found one without;"
                " set medium to video"
            )
        if self.num_candidates and medium not in module.matched_media:
            raise ValueError(
                f"expected a model that matches texts with {medium!r} to rerank, found one that"
                f" matches them with {', '.join(module.matched_media) or 'nothing'};"
                " set rerank to 0"
            )

    @property
    def num_candidates(self) -> int:
        """How many candidates of each query are reranked."""
        wanted = self.options.rerank
        if wanted is None:
            wanted = NUM_CANDIDATES if self.options.medium in self.module.matched_media else 0
        return wanted

    @property
    def inputs(self) -> tuple[str, ...]:
        return INPUTS[self.options.medium]

    def with_model(self, model: "SavedModel") -> "RetrievalEvaluator":
        return retrieval_evaluator(model, self.options)

    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> Embedded:
        """Tokens and embeddings of uint8 views `[B, T, H, W, 3]`, filterbanks `[B, F, M]`."""
        inputs = dict(batch)
        if self.video is not None and "video" in inputs:
            inputs["video"] = normalize(inputs["video"], self.video)
        has_tokens = bool(self.num_candidates)
        medium = self.options.medium
        return encode_media(self.module, variables, medium, inputs, has_tokens=has_tokens)

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
          rows: views of clips, whose output are `Embedded`.
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
        texts = embed_texts(ids, mask, self.module, variables, has_tokens=bool(self.num_candidates))
        embedding = merge_views(views, rows.output.embedding)
        similarity = Scores.symmetric(cosine_similarity(embedding, texts.embedding))
        scores = {"similarity": similarity, "dsl": dual_softmax(similarity)}
        num_pairs = 0
        if self.num_candidates:
            chosen = best_candidates(scores[self.options.rerank_by], self.num_candidates)
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
        module: Any = self.module
        dtype = jnp.dtype(module.config.text.dtype)
        texts = TextTokens(texts.tokens.astype(dtype), texts.mask)
        logits = np.zeros(chosen.pairs.shape, np.float32)
        texts_of = chosen.texts_of()
        for number, own in list(texts_of.items()):
            known = finished(number, own)
            if known is not None:
                logits[number, own] = known
                del texts_of[number]
        for number, scores in match_scores(
            module,
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
        """That of `report.write_report`."""
        from internvideo_jax.evaluation.retrieval.report import write_report

        del names
        return write_report(directory, rows.output, clips, self.metrics(rows))


def retrieval_evaluator(model: "SavedModel", options: RetrievalOptions) -> RetrievalEvaluator:
    """The measurement of a saved model.

    Raises:
      ValueError: it is of another kind, or takes not what is to be found, or not such texts.
    """
    text = model.preprocessing.text
    # The others are compared with texts of the one length that they were trained with.
    is_word_piece = text is not None and text.tokenizer == "wordpiece"
    length = options.max_text_length if is_word_piece else None
    module, tokenizer = dual_encoder(model), text_tokenizer(model, length)
    check_text_length(module, tokenizer, "--config.retrieval.max_text_length")
    return RetrievalEvaluator(module, model.preprocessing.video, tokenizer, options)


def check_text_length(module: DualEncoder, tokenizer: Tokenizer, option: str) -> None:
    """Finds out before clips are read whether a model takes texts of such a length.

    Args:
      module: the model.
      tokenizer: of its texts.
      option: that sets their length, for the error.

    Raises:
      ValueError: it takes shorter ones.
    """
    limit, found = module.max_text_length, tokenizer.max_length
    if limit is not None and found > limit:
        raise ValueError(
            f"retrieval.max_text_length: expected at most {limit} tokens, for which the model has"
            f" positions, found {found}; set {option}={limit}"
        )


def view_config(model: "SavedModel", data: RetrievalData) -> DataConfig:
    """How a dual encoder wants the clips of a measurement.

    Raises:
      ValueError: it takes no videos, or not so many frames.
    """
    views = clip_views(
        model,
        num_frames=data.num_frames,
        segments=data.segments,
        option="--config.eval_data.num_frames",
    )
    audio = model.preprocessing.audio or AudioPreprocessing()
    return dataclasses.replace(views, audio=audio, missing_audio=data.missing_audio)


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
