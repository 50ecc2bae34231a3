import numpy as np
import pytest

from internvideo_jax.data.wordpiece import WordPiece, read_words, train_vocabulary

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


def test_vocabularies_are_the_words_of_captions_the_most_frequent_first(tmp_path):
    captions = ["A red ring.", "a Blue ring", "the re-d ring, again"]
    path = tmp_path / "new" / "vocab.txt"
    assert train_vocabulary(captions, path) == 5 + 8
    words = list(read_words(path))
    assert words[:7] == [*WORDS[:5], "ring", "a"]
    assert words[7:] == ["again", "blue", "d", "re", "red", "the"]
    ids, _ = WordPiece(path, 6)(["a green ring"])
    assert ids.tolist() == [[2, 6, 1, 5, 3, 0]]
    assert train_vocabulary(captions, path, max_words=7) == 7
    assert list(read_words(path)) == words[:7]


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
