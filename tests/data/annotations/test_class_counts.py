"""What is said of the classes of clips."""

import re

import pytest

from internvideo_jax.data.annotations.class_counts import class_warnings, count_labels
from internvideo_jax.data.annotations.records import ClipRecord


def test_each_label_of_a_clip_counts():
    labels = ("a", ("a", "b"), (), None, 3)
    counts = count_labels(ClipRecord(str(i), f"/{i}", label=x) for i, x in enumerate(labels))
    assert counts == {"a": 2, "b": 1, None: 1, 3: 1}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"a": 2, "b": 9}, []),
        ({None: 5}, []),
        ({3: 5}, ["one class, 3:"]),
        ({"a": 1}, ["one class, 'a':"]),
        ({"Dog": 2, "dog": 3, "cat": 2}, ["look alike: 'Dog', 'dog';"]),
        ({"a  b": 2, "A B": 3}, ["look alike: 'A B', 'a  b';"]),
        # The same letter, as two systems write it.
        ({"caf\u00e9": 2, "cafe\u0301": 3}, ["look alike"]),
        ({"a": 1, "b": 2, "c": 1}, ["a single clip.*: 'a', 'c';"]),
        ({0: 1, 1: 1}, ["a single clip.*: 0, 1;"]),
        ({0: 2, 1: 2, None: 1}, ["1 clip has no label"]),
        ({0: 2, 1: 2, None: 2}, ["2 clips have no label"]),
        ({f"{i:02}": 1 for i in range(25)}, ["'19' and 5 more;"]),
    ],
)
def test_what_is_hardly_meant_is_named(counts, said):
    found = class_warnings(counts)
    assert len(found) == len(said)
    for text, pattern in zip(found, said, strict=True):
        assert re.search(pattern, text)
