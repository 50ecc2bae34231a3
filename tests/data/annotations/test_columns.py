"""Lines of text with columns, good and bad."""

import dataclasses

import pytest

from internvideo_jax.data.annotations.lists import check_annotations, read_annotations
from internvideo_jax.data.annotations.records import ClipRecord
from tests.data.annotation_files import problems, write


@pytest.mark.parametrize(
    ("format_", "line", "expected"),
    [
        ("interval", "a.mp4 10 x 3 1", "expected seconds, found 'x'"),
        ("interval", "a.mp4 10 nan 3 1", "0 <= start < end in seconds, found nan and 3.0"),
        ("interval", "a.mp4 10 4 3 1", "0 <= start < end in seconds, found 4.0 and 3.0"),
        ("interval", "a.mp4 10 12 13 1", "a start before the end of the file, 10 s, found 12 s"),
        ("interval", "a.mp4 10 -1 3 1", "0 <= start < end in seconds, found -1.0 and 3.0"),
        ("interval", "a b.mp4 10 1 3 1", "total time, start, end, label), found 6"),
        ("pretrain", "a.mp4 10 1 3 1", "expected 6 columns (source, path, total time,"),
        ("pretrain", "s a.mp4 10 1 3 -2", "a label: an integer from 0, found '-2'"),
        ("frames", "folder 1", "expected 3 columns (folder, number of frames, label)"),
        ("frames", "folder 5 1 3 5", "jsonl holds several labels, other columns have no place"),
        ("frames", "folder 2 3 7", "found 4: ['folder', '2', '3', '7']; jsonl holds"),
        ("frames", "folder few 1", "a number of frames: an integer from 0, found 'few'"),
        ("frames", "folder 0 1", "at least 1 frame in the folder, found 0"),
    ],
)
def test_bad_columns(tmp_path, format_, line, expected):
    path = write(tmp_path / "a.txt", line)
    ((number, message),) = problems(path, format=format_, separator=" ")
    assert number == 1
    assert expected in message


def test_the_pattern_of_frames_can_be_chosen(tmp_path):
    path = write(tmp_path / "ssv1.txt", "12 48 0\n")
    (record,) = read_annotations(path, frame_pattern="{:05}.jpg")
    assert record.frame_pattern == "{:05}.jpg"
    for pattern in ("img.jpg", "{}{}.jpg", "../{}.jpg", "{:0999}.jpg", "{.__class__}", "{:05}/x"):
        with pytest.raises(ValueError, match="one place for the number"):
            read_annotations(path, frame_pattern=pattern)


def test_all_columns_of_a_header(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "path,label,start,end,caption,source,num_frames,id\n"
        'a.mp4,wave,1.5,3,"a man, waving",k400,,\nfolder,,,,,,3,f\nb.mp4,sit\n',
    )
    found = check_annotations(path, root="/data")
    wave = ClipRecord("a.mp4@1.5-3.0", "/data/a.mp4", 1.5, 3.0, "wave", ("a man, waving",))
    assert list(found.records) == [
        dataclasses.replace(wave, source="k400"),
        ClipRecord("f", "/data/folder", num_frames=3, frame_pattern="img_{:05}.jpg"),
    ]
    assert [problem.line for problem in found.error.problems] == [4]


def test_quotes_of_csv(tmp_path):
    path = write(tmp_path / "a.csv", '"base.mp4" ,3\n "more, c.mp4" , 4 \n')
    assert [record.path for record in read_annotations(path, root="/data")] == [
        "/data/base.mp4",
        "/data/more, c.mp4",
    ]
    long = "x" * 140_000
    path = write(tmp_path / "b.csv", f'a"x\rb,1\ngood.mp4,1\n"{long}",1\nb.mp4,2\n"open.mp4,1\n')
    found = problems(path, format="csv")
    assert [line for line, _ in found] == [1, 3, 5]
    assert "a carriage return" in found[0][1]
    assert "field larger than field limit" in found[1][1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.mp4,walk\nb.mp4,3\nc.mp4,sit\n", "the name of a class, as most in this file, found 3"),
        ("a.mp4,walk\nb.mp4,-1\nc.mp4,sit\n", "found '-1'"),
        ("a.mp4,walk\nb.mp4,nan\nc.mp4,sit\n", "found 'nan'"),
        ("a.mp4,walk\nb.mp4,\nc.mp4,sit\n", "found ''"),
        (f"a.mp4,walk\nb.mp4,{'x' * 501}\nc.mp4,sit\n", "the name of a class, found 'xxx"),
        ('{"video": "a", "label": "b"}\n{"video": "c", "label": " d"}\n', "found ' d'"),
        ('{"video": "a", "label": "b"}\n{"video": "c", "label": "\\u001b[31m"}\n', "x1b"),
    ],
)
def test_labels_that_are_no_names(tmp_path, text, found):
    ((line, message),) = problems(write(tmp_path / "a.txt", text))
    assert line == 2
    assert found in message
