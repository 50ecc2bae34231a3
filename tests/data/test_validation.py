import pickle
from collections import Counter

import pytest

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.validation import divide


def clips(*files, root="/data", labels=None):
    """A record for each name of a file; its label is the first letter, unless told otherwise."""
    return [
        ClipRecord(f"{i}", f"{root}/{name}", label=labels[i] if labels else name[0])
        for i, name in enumerate(files)
    ]


def names(records):
    return [record.path.rpartition("/")[2] for record in records]


FEW = [f"{label}{i}.mp4" for label, count in (("a", 20), ("b", 10), ("c", 2)) for i in range(count)]


def test_the_share_of_each_class_is_held_out_and_never_all_of_one():
    records = clips(*FEW, "d.mp4")
    train, validation = divide(records, 0.2, "/data")
    assert Counter(r.label for r in validation) == {"a": 4, "b": 2, "c": 1}
    assert sorted(names(train) + names(validation)) == sorted(names(records))
    # In the order of the list.
    assert names(validation) == [name for name in names(records) if name in names(validation)]
    train, validation = divide(records, 0.99, "/data")
    assert Counter(r.label for r in train) == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert len(divide(records, 0.0, "/data")[1]) == 3


def test_files_stay_on_their_side_when_all_move_and_the_order_changes():
    held_out = set(names(divide(clips(*FEW), 0.2, "/data")[1]))
    moved = clips(*FEW[::-1], root="/elsewhere/videos")
    assert set(names(divide(moved, 0.2, "/elsewhere/videos")[1])) == held_out


def test_clips_of_one_file_stay_together():
    records = [
        ClipRecord(f"{file}{i}", f"/data/{file}.mp4", start=i, end=i + 1, label=file % 2)
        for file in range(8)
        for i in range(5)
    ]
    train, validation = divide(records, 0.25, "/data")
    assert set(names(train)).isdisjoint(names(validation))
    assert Counter(r.label for r in validation) == {0: 5, 1: 5}


def test_training_sees_every_class_also_where_files_show_several():
    # Whichever of the files of class 0 is held out, it may be the only one with class 1.
    for only in range(6):
        files = [f"{i}.mp4" for i in range(6)] + [f"{only}.mp4"]
        records = clips(*files, labels=[0] * 6 + [1])
        train, _ = divide(records, 0.4, "/data")
        assert {r.label for r in train} == {0, 1}


def test_classes_of_single_files_cannot_be_divided():
    with pytest.raises(ValueError, match="expected a class with clips of several files"):
        divide(clips("a.mp4", "b.mp4"), 0.5, "/data")


def test_parts_are_sequences_that_workers_can_be_given():
    train, _ = divide(clips(*FEW), 0.2, "/data")
    assert pickle.loads(pickle.dumps(train))[1:3][0] == train[1]
    assert list(train) == [train[i] for i in range(len(train))]
