"""What a saved model does with clips and texts together: embeddings, their cosines, reranking."""

import dataclasses
import functools
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from internvideo_jax.config import check_counts
from internvideo_jax.data.sources.given import split_clips
from internvideo_jax.data.tokenizers import Tokenizer
from internvideo_jax.data.transforms.captions import clean_caption
from internvideo_jax.evaluation import embeddings
from internvideo_jax.evaluation.features import FailedClip
from internvideo_jax.evaluation.progress import progress_bar, watched
from internvideo_jax.evaluation.retrieval.metrics import Scores, cosine_similarity, normalized
from internvideo_jax.evaluation.retrieval.rerank import TextTokens, best_candidates, match_clips
from internvideo_jax.models.dual_encoder import Embedded
from internvideo_jax.saved_model import SavedModel

# Failures that an error shows.
_MAX_SHOWN = 10

_logger = logging.getLogger(__name__)


class FailedClips(ValueError):
    """Clips without results, among others; the message has the reasons, of many the first.

    Attributes:
      results: of all clips, in their order: a row of the array that there would be, float32, or a
        `FailedClip`.
    """

    def __init__(self, results: list[np.ndarray | FailedClip]):
        super().__init__(results)
        self.results = results

    def __str__(self) -> str:
        failed = [clip for clip in self.results if isinstance(clip, FailedClip)]
        lines = [f"{clip.source}: {clip.reason}" for clip in failed]
        if len(self.results) == 1:
            return lines[0]
        if (more := len(lines) - _MAX_SHOWN) > 0:
            lines[_MAX_SHOWN:] = [f"and {more} more"]
        shown = "".join(f"\n  {line}" for line in lines)
        return (
            f"{len(failed)} of {len(self.results)} clips failed:{shown}\nleave them out; the"
            " error's `results` hold the rows of the others, and each of these as a FailedClip"
        )


@dataclasses.dataclass(frozen=True)
class ClipTextModel(SavedModel):
    """A saved model whose methods compare clips with texts, if it is one that does."""

    def encode_video(
        self, clips: Any, *, num_frames: int | None = None, batch_size: int = 8
    ) -> Float[np.ndarray, "N C"]:
        """Embeddings of clips, to be compared with those of texts by `similarity`.

        Args:
          clips: one clip or a list of them.
          num_frames: frames per clip, if not as many as the model was made for: one from the middle
            of each of so many intervals.
          batch_size: clips that are held together at most.

        Returns:
          float32, a row for each clip, also for one alone; rows are of length 1.

        Raises:
          FailedClips: clips cannot be read; it names them and has the embeddings of the others.
          ValueError: no clips, the model does not compare clips with texts, its tubelets do not
            divide the frames, an argument that counts is not a whole number of at least 1, or
            frames are of another layout, dtype or range.
        """
        given, _ = split_clips(clips)
        encoded = embeddings.embed_clips(given, self, num_frames=num_frames, batch_size=batch_size)
        if not given:
            raise ValueError("expected at least one clip, found none")
        return _rows(
            clip if isinstance(clip, FailedClip) else normalized(clip.embedding, "clips")
            for clip in watched(encoded, len(given), "clip")
        )

    def encode_text(
        self, texts: str | Iterable[str], *, clean: bool = True
    ) -> Float[np.ndarray, "N C"]:
        """Embeddings of texts, to be compared with those of clips by `similarity`.

        Texts that are longer than the model takes are cut, with a warning.

        Args:
          texts: one text or a list of them.
          clean: whether case and punctuation are removed first, as of all captions that the models
            were trained and are evaluated on (`data.transforms.captions.clean_caption`).

        Returns:
          float32, a row for each text, also for one alone; rows are of length 1.

        Raises:
          ValueError: no texts, or one without words; the model does not compare clips with texts,
            or was saved without its tokenizer.
          TypeError: something else than texts.
        """
        return normalized(self._encoded_texts(texts, clean, has_tokens=False)[0].embedding, "texts")

    def similarity(
        self, video: Float[np.ndarray, "V C"], text: Float[np.ndarray, "T C"]
    ) -> Float[np.ndarray, "V T"]:
        """Cosines of all clips with all texts, float32: how well they fit, from -1 to 1.

        The best clip for each text is `similarity(video, text).argmax(axis=0)`.

        Args:
          video: of `encode_video`.
          text: of `encode_text`.

        Raises:
          ValueError: arrays of other shapes, or numbers that are not finite.
        """
        shapes = np.shape(video), np.shape(text)
        if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
            raise ValueError(
                "expected embeddings [V, C] of clips and [T, C] of texts, by the same model, found"
                f" shapes {shapes[0]} and {shapes[1]}; a single row is embedding[None]"
            )
        return cosine_similarity(video, text)

    def rerank(
        self,
        clips: Any,
        texts: str | Iterable[str],
        scores: Float[np.ndarray, "V T"] | None = None,
        *,
        top: int = 16,
        num_frames: int | None = None,
        batch_size: int = 8,
        clean: bool = True,
    ) -> Float[np.ndarray, "V T"]:
        """How well clips and texts fit by a stage-2 model that reads both together.

        That tells more apart than `similarity` does, and takes longer for every pair. Clips are
        encoded anew, those of no pair that is looked at not at all.

        Args:
          clips: one clip or a list of V clips.
          texts: one text or a list of T texts.
          scores: of `similarity`; then only the `top` best clips of each text are looked at. None
            looks at all pairs.
          top: see there.
          num_frames: as in `encode_video`.
          batch_size: clips that are held together at most.
          clean: as in `encode_text`.

        Returns:
          float32: logits of a match; -inf of pairs that were not looked at.

        Raises:
          FailedClips: clips cannot be read; it names them and has the rows of the others.
          ValueError: the model does not match clips with texts, scores of another shape, or as
            `encode_video` and `encode_text`.
        """
        check_counts(top=top, batch_size=batch_size)
        if "video" not in embeddings.dual_encoder(self).matched_media:
            raise ValueError(
                "expected a model of stage 2, which reads a clip and a text together, found"
                f" {type(self.module).__name__}, which compares their embeddings alone: take"
                " `model.similarity`"
            )
        given, _ = split_clips(clips)
        if not given:
            raise ValueError("expected at least one clip, found none")
        encoded, mask = self._encoded_texts(texts, clean, has_tokens=True)
        shape = len(given), len(mask)
        if scores is not None and np.shape(scores) != shape:
            raise ValueError(
                f"expected scores of {shape[0]} clips with {shape[1]} texts, found shape"
                f" {np.shape(scores)}; pass model.similarity(video, text) of the same lists"
            )
        pairs = np.ones(shape, bool)
        if scores is not None:
            pairs = best_candidates(Scores.symmetric(np.asarray(scores)), top).of_media.T
        rows = match_clips(
            given,
            TextTokens(encoded.tokens, mask),
            pairs,
            self,
            num_frames=num_frames,
            batch_size=batch_size,
        )
        return _rows(watched(rows, len(given), "clip"))

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """What cuts texts into the ids that the module takes: `ids, mask = tokenizer(["a dog"])`.

        Raises:
          ValueError: the model takes no texts, or was saved without its tokenizer.
        """
        return embeddings.text_tokenizer(self)

    def _encoded_texts(
        self, texts: str | Iterable[str], clean: bool, *, has_tokens: bool
    ) -> tuple[Embedded, np.ndarray]:
        """Encoded texts, and their mask `[T, L]`."""
        module = embeddings.dual_encoder(self)
        given = _given_texts(texts)
        read = [clean_caption(text) for text in given] if clean else given
        if wordless := [text for text, own in zip(given, read, strict=True) if not own.strip()]:
            raise ValueError(
                f"expected texts with words, found {len(wordless)} without: {wordless[0]!r}"
                + (" and others" if len(wordless) > 1 else "")
            )
        ids, mask = self.tokenizer(read)
        if num_cut := self.tokenizer.count_cut(read):
            _logger.warning(
                "%d of %d texts are longer than %d tokens: their ends are not read",
                num_cut,
                len(read),
                self.tokenizer.max_length,
            )
        with progress_bar(len(read), "text") as bar:
            encoded = embeddings.embed_texts(
                ids, mask, module, self.variables, has_tokens=has_tokens, on_texts=bar.update
            )
        return encoded, mask


def _given_texts(texts: Any) -> list[str]:
    """The texts that are meant, at least one."""
    given = [texts] if isinstance(texts, str) else texts
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise TypeError(f"expected a text or a list of texts, found {type(texts).__name__}")
    given = list(given)
    for number, text in enumerate(given):
        if not isinstance(text, str):
            raise TypeError(f"text {number}: expected a text, found {type(text).__name__}")
    if not given:
        raise ValueError("expected at least one text, found none")
    return given


def _rows(results: Iterable[np.ndarray | FailedClip]) -> np.ndarray:
    """The results of clips as an array.

    Raises:
      FailedClips: some are failures.
    """
    found = list(results)
    rows = [row for row in found if not isinstance(row, FailedClip)]
    if len(rows) < len(found):
        raise FailedClips(found)
    return np.stack(rows)
