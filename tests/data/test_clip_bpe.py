"""CLIP's byte pairs, with a vocabulary of a few of them."""

import gzip

import numpy as np
import pytest

from internvideo_jax.data.clip_bpe import ClipBpe, OpenClipBpe, clean_text, read_merges
from internvideo_jax.data.tokenizers import tokenizer_of
from internvideo_jax.preprocessing import TextPreprocessing
from tests.small_models import MERGES, write_merges


@pytest.fixture
def vocabulary(tmp_path):
    return write_merges(tmp_path)


def test_texts_become_ids_of_one_length(vocabulary):
    tokenizer = ClipBpe(vocabulary, max_length=6)
    first, last = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert last == 512 + len(MERGES) + 1
    word = {merge.replace(" ", ""): 512 + i for i, merge in enumerate(MERGES)}
    # A letter at the end of a word has an id of its own.
    s, s_end = ord("s") - 33, 256 + ord("s") - 33
    ids, mask = tokenizer(["Red  RING", "ss", "", "red ring blue red ring blue"])
    red, ring, blue = word["red</w>"], word["ring</w>"], word["blue</w>"]
    expected = [
        [first, red, ring, last, 0, 0],
        [first, s, s_end, last, 0, 0],
        [first, last, 0, 0, 0, 0],
        [first, red, ring, blue, red, last],
    ]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(mask.sum(1), [4, 4, 2, 6])
    assert tokenizer.count_cut(["red", "red ring blue red ring blue"]) == 1
    assert tokenizer([])[0].shape == (0, 6)


def test_words_that_begin_and_end_texts_are_each_kinds_own(vocabulary):
    own, other = "<|endoftext|> <|startoftext|>!", "<end_of_text> <start_of_text>!"
    for make, text, foreign in ((ClipBpe, own, other), (OpenClipBpe, other, own)):
        tokenizer = make(vocabulary, max_length=40)
        first, last = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
        exclamation = 256
        assert tokenizer([text])[0][0, :6].tolist() == [first, last, first, exclamation, last, 0]
        found = tokenizer([foreign])[0][0]
        assert (found == last).sum() == (found == first).sum() == 1


def test_the_kind_names_the_class(vocabulary):
    for kind, make in (("clip_bpe", ClipBpe), ("open_clip_bpe", OpenClipBpe)):
        preprocessing = TextPreprocessing(kind, (vocabulary.name,), max_length=7)
        tokenizer = tokenizer_of(preprocessing, {vocabulary.name: vocabulary})
        assert type(tokenizer) is make
        assert tokenizer.max_length == 7


def test_texts_are_mended():
    assert clean_text("  A&amp;amp;B\n\tcafÃ© “x” ") == 'a&b café "x"'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"no gzip", "no gzip file"),
        (gzip.compress(b"version\ni n\n")[:-9], "no gzip file"),
        (gzip.compress(b"\xff\xfe"), "no UTF-8"),
        (gzip.compress(b"version\ni n\nin\n"), "'in' on line 3"),
        (gzip.compress(b"version\ni n\ni n\n"), "'i n' on line 3"),
        (gzip.compress(b"version\nin g\n"), "'in g' on line 2"),
        (gzip.compress(bytes(1 << 24)), "more than 8,388,608 bytes"),
    ],
)
def test_other_files_are_refused(tmp_path, content, found):
    path = tmp_path / "vocabulary.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=found):
        read_merges(path)


def test_texts_have_room_for_their_beginning_and_end(vocabulary):
    with pytest.raises(ValueError, match="at least 2 tokens, found max_length 1"):
        ClipBpe(vocabulary, max_length=1)
