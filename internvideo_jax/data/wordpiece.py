"""Texts to ids of a BERT vocabulary: uncased WordPiece, by the `tokenizers` library."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import BertWordPieceTokenizer, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import WordLevelTrainer

from internvideo_jax.data.transforms.captions import clean_caption
from internvideo_jax.files import write_text
from internvideo_jax.objectives.masked_lm import Vocabulary

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPiece:
    """Cuts texts into words of a vocabulary, as BERT's uncased models do.

    Attributes:
      vocabulary: its size and its special words.
      max_length: L, the tokens of a text: longer ones are cut before the last, shorter ones padded.
      vocab_size: how many words there are.
    """

    def __init__(self, path: str | Path, max_length: int) -> None:
        """Reads a vocabulary.

        Args:
          path: a text file with one word on each line, ids being line numbers from 0.
          max_length: of a text, its first and last token included.

        Raises:
          ValueError: the file is no such list, or lacks special words.
        """
        words = read_words(Path(path))
        self.max_length = max_length
        self.vocabulary = Vocabulary(
            len(words), *(words[f"[{name}]"] for name in ("PAD", "CLS", "MASK"))
        )
        self.vocab_size = self.vocabulary.size
        self._tokenizer = BertWordPieceTokenizer(words, lowercase=True)
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.enable_padding(length=max_length, pad_id=self.vocabulary.pad_id)

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B L"]]:
        """Ids of texts and masks, 0 at padding, both int32."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([text.ids for text in encoded], np.int32)
        mask = np.array([text.attention_mask for text in encoded], np.int32)
        return ids.reshape(-1, self.max_length), mask.reshape(-1, self.max_length)

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model takes."""
        return sum(bool(text.overflowing) for text in self._tokenizer.encode_batch(list(texts)))


def train_vocabulary(captions: Iterable[str], path: str | Path, max_words: int = 30_522) -> int:
    """Writes a vocabulary of the words of captions, as models read them.

    All entries are whole words: the trainer of WordPiece gives other pieces each time.

    Args:
      captions: as annotations have them.
      path: the file to write, which `WordPiece` reads.
      max_words: of the vocabulary, the special ones included; the most frequent ones are taken, and
        of equally frequent ones those that come first in the alphabet.

    Returns:
      The number of words.
    """
    tokenizer = Tokenizer(models.WordLevel())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordLevelTrainer(
        vocab_size=max_words, special_tokens=list(_SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(map(clean_caption, captions), trainer)
    ids = tokenizer.get_vocab()
    write_text(path, "\n".join(sorted(ids, key=ids.__getitem__)) + "\n")
    return len(ids)


def read_words(path: Path) -> dict[str, int]:
    """Ids of the words of a vocabulary.

    Raises:
      ValueError: not UTF-8 text, words that repeat, or missing special words.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected a vocabulary, one word on each line, in {path}, found no UTF-8 text: {error}"
        ) from None
    if lines[-1] == "":
        lines.pop()
    words: dict[str, int] = {}
    for number, line in enumerate(lines):
        word = line.removesuffix("\r")
        if word in words:
            raise ValueError(
                f"expected distinct words in {path}, found {word!r} on lines {words[word] + 1} and"
                f" {number + 1}"
            )
        words[word] = number
    missing = [word for word in _SPECIAL if word not in words]
    if missing:
        raise ValueError(
            f"expected a BERT vocabulary with {', '.join(_SPECIAL)} in {path}, found {len(words)}"
            f" words without {', '.join(missing)}; pass the vocab.txt of the model"
        )
    return words
