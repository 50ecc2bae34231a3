"""How annotation files are written is told by their first lines."""

import pytest

from internvideo_jax.data.annotations.lists import check_annotations, read_annotations
from internvideo_jax.data.annotations.records import ClipRecord
from tests.data.annotation_files import problems, write


def test_json_lines_are_recognised_by_their_contents(tmp_path):
    path = write(tmp_path / "train.txt", '{"video": "a.mp4"}\n')
    assert check_annotations(path).format == "jsonl"
    path = write(tmp_path / "train.json", ' \n[\n{"video": "a.mp4", "caption": "c"}]')
    assert check_annotations(path).format == "json"
    path = write(tmp_path / "lines.json", '{"video": "a.mp4"}\n{"video": "b.mp4"}\n')
    assert check_annotations(path).format == "jsonl"


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.mp4,1\n",
        "Class ; Video\n1 ; a.mp4\n",
        "video\tlabel\tstart\tcaption\na.mp4\t1\t\t\n",
        "\nid label path\na.mp4 1 a.mp4\n",
    ],
)
def test_a_header_names_the_columns(tmp_path, text):
    found = check_annotations(write(tmp_path / "a.csv", text), root="/data")
    assert (found.format, found.error) == ("csv", None)
    assert list(found.records) == [ClipRecord("a.mp4", "/data/a.mp4", label=1)]


def test_columns_that_mean_something_else_are_passed_over_aloud(tmp_path, caplog):
    text = "split,path,fold,label,target,note\ntrain,a.mp4,3,1,,\ntest,b.mp4,4,2,7,the label\n"
    path = write(tmp_path / "a.csv", text)
    for _ in range(2):
        records = read_annotations(path, root="/data")
    assert [(clip.id, clip.label) for clip in records] == [("a.mp4", 1), ("b.mp4", 2)]
    (record,) = caplog.records
    assert f"{path}: columns that are not read: split, fold, target, note" in record.getMessage()
    ((line, message),) = problems(write(tmp_path / "b.csv", text + "train,c.mp4,3,1,\n"))
    assert line == 4
    assert message.startswith("expected 6 columns (..., video, ..., label, ..., ...), found 5")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("path,label,lable2\na.mp4,1,2\n", "found 'lable2'; rename or remove that column"),
        ("path,label,time_start\na.mp4,1,2\n", "found 'time_start'; rename or remove"),
        ("path,label,captions\na.mp4,1,2\n", "found 'captions'; rename or remove"),
        ("video dance\na.mp4 sit\n", "found 'dance'; rename or remove"),
        ("path,class,label\na.mp4,1,1\n", "each thing once"),
        ("label,caption\n1,a\n", "each thing once, found 'label,caption'"),
        ("path\na.mp4\n", "found 'path' alone; add a column label"),
        ("name,action\na.mp4,1\n", "the first line 'name,action'; name the columns so"),
        ("name,action\na.mp4,sit\nb.mp4,run\n", "the first line 'name,action'"),
        ("clip total start end which\na.mp4 9 1 2 3\n", "the first line 'clip total start"),
    ],
)
def test_other_headers_are_refused(tmp_path, text, found):
    ((line, message),) = problems(write(tmp_path / "a.csv", text))
    assert line is None
    assert found in message
    assert "columns of path, video, " in message


@pytest.mark.parametrize(
    ("text", "format_"),
    [
        ("a.mp4,clap hands\nb.mkv,3D printing\n", "csv"),
        ("b.mkv walk\na.mp4 sit\n", "csv"),
        ("a.mp4 10 1 2 walk\nb.mp4 10 1 2 sit\n", "interval"),
        ("k400 a.mp4 -1 -1 -1 walk\nk400 b.mp4 10 1 2 sit\n", "pretrain"),
        ("a 10 walk\nb 7 sit\n", "frames"),
        ('{"video": "a", "label": "walk"}\n{"video": "b", "label": ["sit", "eat"]}\n', "jsonl"),
        ('{"video": "a", "label": []}\n{"video": "b", "label": ["sit"]}\n', "jsonl"),
    ],
)
def test_labels_may_be_names(tmp_path, text, format_):
    path = write(tmp_path / "a.txt", text)
    found = check_annotations(path)
    assert (found.format, found.error) == (format_, None)
    given = [record.label for record in found.records]
    labels = [name for label in given for name in (label if isinstance(label, tuple) else [label])]
    assert labels
    assert found.records.class_names == tuple(sorted(labels))
    assert len(read_annotations(path, classes=[*labels, "dance"])) == 2
    assert "--classes=FILE" in problems(path, num_classes=9)[0][1]
    others = problems(path, classes=[*labels[:-1], f"{labels[-1]}s"])
    assert f"found '{labels[-1]}'; did you mean '{labels[-1]}s'?" in others[-1][1]


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a\nb\n", "'a'"),
        ("a b c\n", "'a b c'"),
        ("a 1 2 3 4\nb.mp4 1 2 3 4\n", "1 2 3 4'"),
        ("a.mp4,0\nb.mp4 and no label\n", "'b.mp4 and no label'"),
    ],
)
def test_a_format_that_cannot_be_told_is_asked_for(tmp_path, text, quoted):
    ((line, message),) = problems(write(tmp_path / "a.txt", text))
    assert line is None
    assert "name it with --format" in message
    assert quoted in message


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.csv", "", "expected at least one clip, found an empty file"),
        ("a.csv", " \n\n", "expected at least one clip, found an empty file"),
        ("a.jsonl", "", "expected at least one clip, found none"),
        ("a.json", "[]", "expected at least one clip, found none"),
        ("a.json", "", "expected '[' of a JSON list, found the end of the file"),
    ],
)
def test_empty_files(tmp_path, name, text, found):
    ((_, message),) = problems(write(tmp_path / name, text))
    assert message == found


@pytest.mark.parametrize("more", [",note" * 50, ",n" * 60, f",{'note' * 20}", f",{'x' * 10**6}"])
def test_headers_beyond_measure_are_refused(tmp_path, more):
    ((line, message),) = problems(write(tmp_path / "a.csv", f"path,label{more}\na.mp4,1,2\n"))
    assert line is None
    assert "rename or remove that column" in message
    assert len(message) < 500
