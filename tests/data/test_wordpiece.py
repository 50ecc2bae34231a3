import numpy as np
import pytest

from internvideo_jax.data.wordpiece import WordPiece, read_words

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "cafe"]


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def test_texts_become_ids_of_one_length(vocab):
    tokenizer = WordPiece(vocab, max_length=5)
    ids, mask = tokenizer(["A DOGS", "Café", "", "a a a a a", "[MASK] cat"])
    expected = [
        [2, 5, 6, 7, 3],
        [2, 8, 3, 0, 0],
        [2, 3, 0, 0, 0],
        [2, 5, 5, 5, 3],
        [2, 4, 1, 3, 0],
    ]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(mask, ids != 0)
    assert tokenizer.vocabulary == (9, 0, 2, 4)
    assert tokenizer([])[0].shape == (0, 5)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[PAD]\n[UNK]\n", r"2 words without \[CLS\], \[SEP\], \[MASK\]"),
        ("[PAD]\nx\ny\nx", "'x' on lines 2 and 4"),
        (b"\xff\xfe", "no UTF-8"),
    ],
)
def test_other_files_are_refused(tmp_path, content, found):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=found):
        read_words(path)
