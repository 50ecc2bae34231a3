"""The texts of a measurement of retrieval, and whose they are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from internvideo_jax.data.annotations.entries import quote
from internvideo_jax.data.transforms.captions import clean_caption
from internvideo_jax.evaluation.retrieval.options import RetrievalOptions

# Captions without words that an error lists.
_MAX_LISTED = 5


class Texts(NamedTuple):
    """The texts of clips.

    Attributes:
      texts: each once, or once for each clip that has it.
      pairs: places of clips and of texts that belong together, int64 `[P, 2]`.
    """

    texts: tuple[str, ...]
    pairs: np.ndarray


def texts_of_clips(
    captions: Sequence[Sequence[str]],
    options: RetrievalOptions,
    clips: Sequence[str] | None = None,
) -> Texts:
    """The texts of clips as a model reads them.

    A caption that a clip has twice is two texts, as upstream's numbers count it, unless equal ones
    are shared.

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
