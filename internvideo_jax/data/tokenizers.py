"""The tokenizers of texts, by the kind that a model's preprocessing names."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int

from internvideo_jax.preprocessing import TextPreprocessing

# Class of each kind, called with the paths of its files, in the order in which the preprocessing
# names them, the tokens of a text and, where there is one, the prompt.
_CLASSES = {
    "wordpiece": "internvideo_jax.data.wordpiece:WordPiece",
    "sentencepiece": "internvideo_jax.data.llama_tokenizer:LlamaTokenizer",
    "clip_bpe": "internvideo_jax.data.clip_bpe:ClipBpe",
    "open_clip_bpe": "internvideo_jax.data.clip_bpe:OpenClipBpe",
}


class Tokenizer(Protocol):
    """Turns texts into ids.

    Attributes:
      max_length: L, the tokens of a text: longer ones are cut, shorter ones padded.
      vocab_size: how many ids there are.
    """

    max_length: int
    vocab_size: int

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B L"]]:
        """Ids of texts and masks, 0 at padding, both int32."""

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model takes."""


def tokenizer_of(
    preprocessing: TextPreprocessing,
    files: Mapping[str, str | Path],
    max_length: int | None = None,
) -> Tokenizer:
    """The tokenizer of a model.

    Args:
      preprocessing: how the model wants its texts.
      files: where the files lie, by the names of `preprocessing.files`.
      max_length: of a text, if not the model's.

    Raises:
      ValueError: a file is no vocabulary of that kind.
    """
    module, _, name = _CLASSES[preprocessing.tokenizer].partition(":")
    make: Callable[..., Tokenizer] = getattr(import_module(module), name)
    paths = [Path(files[name]) for name in preprocessing.files]
    options = {"prompt": preprocessing.prompt} if preprocessing.prompt else {}
    return make(*paths, max_length or preprocessing.max_length, **options)
