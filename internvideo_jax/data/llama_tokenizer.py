"""Texts to ids of a LLaMA: byte pairs, by the `sentencepiece` library."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Int

from internvideo_jax.files import read_bytes

# That of LLaMA-7B has 0.5 MB, those with 250,000 pieces have 5.
_MAX_BYTES = 64 << 20
_SPACE = "▁"
# Unknown, begin and end.
_SPECIAL = ("<unk>", "<s>", "</s>")
# A piece of some vocabularies; its id is no padding here.
_PADDING_WORD = "[PAD]"
# Behind a model's message it replaces one setting: normalizer_spec.add_dummy_prefix = false.
_NO_PREFIX = b"\x1a\x02\x18\x00"


class LlamaTokenizer:
    """Cuts texts into the pieces of a sentencepiece model, as Hugging Face's `LlamaTokenizer` does.

    A text begins with `<s>` and ends with `</s>`; the padding's id is that of `<unk>`, 0. Names of
    special pieces in a text stand for these pieces.

    Attributes:
      max_length: L, the tokens of a text, its first and last one included: longer ones are cut
        before the last, shorter ones padded on the right.
      vocab_size: how many pieces there are.

    Source: upstream `internvideo2_clip_text.py` with the slow tokenizer, `legacy=False`.
    """

    def __init__(self, path: str | Path, max_length: int, prompt: str = "") -> None:
        """Reads a sentencepiece model.

        Args:
          path: its file.
          max_length: of a text.
          prompt: put before every text.

        Raises:
          ValueError: the file is no such model, or lacks special pieces; `max_length` leaves no
            room.
        """
        if max_length < 2:
            raise ValueError(
                f"max_length: expected at least 2, for <s> and </s>, found {max_length}"
            )
        self.max_length = max_length
        self._prompt = prompt
        self._pieces = read_pieces(Path(path))
        pieces = self._pieces
        self.vocab_size = pieces.get_piece_size()
        self._special = {name: pieces.piece_to_id(name) for name in _SPECIAL}
        if pieces.piece_to_id(_PADDING_WORD) != 0:
            self._special[_PADDING_WORD] = pieces.piece_to_id(_PADDING_WORD)
        self._splitter = re.compile(f"({'|'.join(map(re.escape, self._special))})")

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B L"]]:
        """Ids of texts and masks, 0 at padding, both int32."""
        ids = np.zeros((len(texts), self.max_length), np.int32)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            inner = self._encode(text)[: self.max_length - 2]
            whole = [self._pieces.bos_id(), *inner, self._pieces.eos_id()]
            ids[row, : len(whole)] = whole
            mask[row, : len(whole)] = 1
        return ids, mask

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model takes."""
        return sum(len(self._encode(text)) > self.max_length - 2 for text in texts)

    def _encode(self, text: str) -> list[int]:
        """Ids of a text without those that begin and end it."""
        text = f"{self._prompt}{text}".replace(_SPACE, " ")
        if not text:
            return []
        # A text begins like a word; what follows a special piece begins as it is written.
        parts = self._splitter.split(f" {text}")
        if parts[0] == " " and len(parts) > 1:
            parts = parts[1:]
        ids = ([self._special[p]] if p in self._special else self._encode_part(p) for p in parts)
        return list(itertools.chain.from_iterable(ids))

    def _encode_part(self, part: str) -> list[int]:
        # Half a surrogate pair has no encoding.
        clean = part.encode("utf-8", "replace").decode()
        found: list[int] = self._pieces.encode(clean)
        return found


def read_pieces(path: Path) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece model, which puts no space before a text.

    Raises:
      ValueError: the file is no such model, or lacks special pieces.
    """
    content = read_bytes(path, _MAX_BYTES)
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.load_from_serialized_proto(content + _NO_PREFIX)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"expected a sentencepiece model at {path}, found another or damaged file ({error});"
            " pass the tokenizer.model of the model"
        ) from None
    numbers = [pieces.unk_id(), pieces.bos_id(), pieces.eos_id()]
    named = [pieces.piece_to_id(name) for name in _SPECIAL]
    if numbers != named or numbers[0] != 0 or 0 in numbers[1:]:
        listed = ", ".join(f"{n} {i}" for n, i in zip(_SPECIAL, numbers, strict=True))
        raise ValueError(
            f"expected the vocabulary of a LLaMA at {path}, with the pieces {', '.join(_SPECIAL)},"
            f" whose first is number 0, found others among {pieces.get_piece_size()} ({listed});"
            " pass the tokenizer.model of the model"
        )
    return pieces
