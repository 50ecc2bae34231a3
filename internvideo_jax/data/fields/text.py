"""Captions as ids of words."""

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.captions import drawn_caption
from internvideo_jax.data.fields.field import Columns, Draws, Field, LazyClip
from internvideo_jax.data.tokenizers import tokenizer_of
from internvideo_jax.data.transforms.captions import clean_caption
from internvideo_jax.preprocessing import TextPreprocessing

NAMED = "text/"


def given_vocabulary(path: str | None) -> str:
    """The file of the words that captions are cut into.

    Raises:
      ValueError: none is given.
    """
    if path is None:
        raise ValueError(
            "vocabulary: expected the file of the words that captions are cut into, found none;"
            " set --config.data.vocabulary=FILE, the tokenizer's file of the model"
        )
    return path


class TextField(Field):
    """`text`, int32 `[b, L]`: ids of one of the clip's captions, without case and punctuation.

    `text/NAME` is of the captions of that name. In training one is drawn anew each time, in
    evaluation it is the first one. Longer ones are cut, shorter ones end in padding. A clip whose
    caption has no words is one that cannot be read.
    """

    name = "text"

    def __init__(self, config: DataConfig, name: str = "text"):
        self.name = name  # type: ignore[misc]  # captions of each name are a field of their own
        self._caption = name.removeprefix(NAMED) if name.startswith(NAMED) else ""
        path = given_vocabulary(config.vocabulary)
        length = config.max_text_length
        text = TextPreprocessing(config.tokenizer, ("vocabulary",), length, config.prompt)
        self._tokenize = tokenizer_of(text, {"vocabulary": path})

    def train(self, clip: LazyClip, draws: Draws) -> Columns:
        return self._columns(drawn_caption(clip, draws, self._caption))

    def evaluate(self, clip: LazyClip) -> Columns:
        return self._columns(drawn_caption(clip, None, self._caption))

    def blank(self) -> Columns:
        return {self.name: np.zeros((1, self._tokenize.max_length), np.int32)}

    def _columns(self, caption: str) -> Columns:
        cleaned = clean_caption(caption)
        if not cleaned:
            raise ValueError(f"expected a caption with words, found {caption!r}; correct it")
        ids, _ = self._tokenize([cleaned])
        return {self.name: ids}
