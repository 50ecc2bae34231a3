"""Cleaning of captions; more examples are in the goldens."""

import pytest

from internvideo_jax.data.transforms.captions import clean_caption


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man's dog -- runs, fast!", "a mans dog runs fast"),
        ("<person> walks/jogs", "person walks jogs"),
        ("...", ""),
        ("two\n\n", "two"),
    ],
)
def test_case_and_punctuation_go(caption, expected):
    assert clean_caption(caption) == expected


def test_words_can_be_limited():
    assert clean_caption("one two three", 2) == "one two"
