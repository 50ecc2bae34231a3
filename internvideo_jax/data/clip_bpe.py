"""Texts to ids of CLIP's vocabulary: lower-case byte pairs, by the `tokenizers` library.

Source: upstream `Data/InternVid/viclip/simple_tokenizer.py` and `viclip_text.py`, and the tokenizer
of open_clip, which MobileCLIP's texts go through.
"""

import gzip
import html
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import ftfy
import numpy as np
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

# What a vocabulary unpacks to at most; the published one has 3 MB.
_MAX_BYTES = 1 << 23
# The published file goes on, but CLIP's vocabulary ends here: 2 x 256 bytes, two special words.
_MAX_MERGES = 49_152 - 256 - 2
_WORD_END = "</w>"
# Contractions, letters, single digits, and whatever else is no blank.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipBpe:
    """Cuts texts into byte pairs, as CLIP and ViCLIP do.

    Attributes:
      special: words that begin and end a text, ids of their own where a text holds them.
      max_length: L, the tokens of a text: longer ones are cut before the last, shorter ones padded.
      vocab_size: how many ids there are; the last one ends a text.
    """

    special: ClassVar[tuple[str, str]] = ("<|startoftext|>", "<|endoftext|>")

    def __init__(self, path: str | Path, max_length: int) -> None:
        """Reads a vocabulary.

        Args:
          path: of the published `bpe_simple_vocab_16e6.txt.gz`, or of a shorter one of its kind.
          max_length: of a text, its first and last token included.

        Raises:
          ValueError: the file is no such list, or texts have no room for both of these tokens.
        """
        if max_length < 2:
            raise ValueError(f"expected texts of at least 2 tokens, found max_length {max_length}")
        merges = read_merges(Path(path))
        words = [*_byte_words(), *(first + second for first, second in merges)]
        self.max_length = max_length
        self.vocab_size = len(words) + 2
        self._ids = {word: len(words) + i for i, word in enumerate(self.special)}
        self._split = pre_tokenizers.Split(
            Regex("|".join((*map(re.escape, self.special), _PIECES))), "removed", invert=True
        )
        vocabulary = {word: i for i, word in enumerate(words)}
        self._tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=_WORD_END))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B L"]]:
        """Ids of texts and masks, 0 at padding, both int32; 0 is also the id of a word."""
        ids = np.zeros((len(texts), self.max_length), np.int32)
        mask = np.zeros_like(ids)
        first, last = self._ids.values()
        for row, words in enumerate(self._encode(texts)):
            found = [first, *words[: self.max_length - 2], last]
            ids[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return ids, mask

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model takes."""
        return sum(len(words) > self.max_length - 2 for words in self._encode(texts))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts without those of their beginning and end."""
        cleaned = [clean_text(text) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)
        return [
            self._encode_pieces(text) if any(word in text for word in self.special) else found.ids
            for text, found in zip(cleaned, encoded, strict=True)
        ]

    def _encode_pieces(self, text: str) -> list[int]:
        """The same of one that holds special words."""
        ids = []
        for piece, _ in self._split.pre_tokenize_str(text):
            special = self._ids.get(piece)
            found = self._tokenizer.encode(piece, add_special_tokens=False).ids
            ids += found if special is None else [special]
        return ids


class OpenClipBpe(ClipBpe):
    """The same with open_clip's special words, as MobileCLIP's texts are read."""

    special = ("<start_of_text>", "<end_of_text>")


def clean_text(text: str) -> str:
    """A text in lower case, its encoding, entities of HTML and blanks mended."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of a vocabulary that are joined, the most frequent first.

    Args:
      path: a text compressed by gzip: one line about its version, then two symbols on each line,
        with a blank between them.

    Raises:
      ValueError: no such file, or a pair that cannot arise or is there already.
      OSError: it cannot be read.
    """
    what = f"expected CLIP's vocabulary (bpe_simple_vocab_16e6.txt.gz) in {path}, found"
    try:
        with gzip.open(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{what} no gzip file: {error}; fetch it again") from None
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{what} more than {_MAX_BYTES:,} bytes; fetch it again")
    try:
        # What follows the last pair is one line, and not looked at.
        lines = content.decode("utf-8").split("\n", _MAX_MERGES + 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} no UTF-8 text: {error}; fetch it again") from None
    known = set(_byte_words())
    merges = []
    for number, line in enumerate(lines[1 : _MAX_MERGES + 1], start=2):
        if not line and number == len(lines):
            break
        first, _, second = line.removesuffix("\r").partition(" ")
        if first not in known or second not in known or first + second in known:
            raise ValueError(
                f"{what} {line[:40]!r} on line {number}: no pair of symbols before it, or one that"
                " is there already; fetch it again"
            )
        known.add(first + second)
        merges.append((first, second))
    return merges


def _byte_words() -> list[str]:
    """A printable character for each byte, then the same at the ends of words."""
    printable = (*range(33, 127), *range(161, 173), *range(174, 256))
    letters = [*map(chr, printable), *map(chr, range(256, 512 - len(printable)))]
    return [*letters, *(letter + _WORD_END for letter in letters)]
