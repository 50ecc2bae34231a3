"""Lists of clips whose classes are known by name alone."""

import json

import pytest

from internvideo_jax.data.annotations.classified import read_classified
from internvideo_jax.data.annotations.records import AnnotationError

CHARADES = """\
id,subject,scene,script,actions,length
YSKX3,HR43,Bedroom,"A person, who sits.","c092 11.90 21.20;c147 0.00 12.60;c092 1.00 2.00",30.0
N11GT,0KZ7,Kitchen,"Nobody.",,18.0
"""
ACTIONS = "c090 Opening a bag\nc092 Sitting in a bed\nc147 Holding a phone\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "YSKX3.mp4"):
        (tmp_path / "videos" / name).touch()
    return tmp_path


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.csv", "videos/a.mp4,swim\nvideos/b.mp4,a run\nvideos/c.mp4,swim\n"),
        (
            "upstream.json",
            [
                {"video": "videos/a.mp4", "caption": "swim"},
                {"video": "videos/b.mp4", "caption": ["a run"]},
                {"video": "videos/c.mp4", "caption": "swim"},
            ],
        ),
    ],
)
def test_classes_are_the_names_of_the_labels(name, content, folder):
    clips = read_classified(write(folder / name, content))
    assert clips.classes == ("a run", "swim")
    assert [record.label for record in clips.records] == ["swim", "a run", "swim"]
    assert clips.missing == ("videos/c.mp4",)
    assert not clips.is_multi_label


def test_numbers_get_the_names_of_a_file(folder):
    path = write(folder / "list.csv", "a.mp4,1\nb.mp4,0\n")
    names = write(folder / "names.txt", "walk\nrun\n")
    clips = read_classified(path, root=folder / "videos", classes=names)
    assert clips.classes == ("walk", "run")
    assert [record.label for record in clips.records] == [1, 0]
    assert clips.missing == ()
    assert read_classified(path, classes=("walk", "run")).missing == ("a.mp4", "b.mp4")


def test_folders_are_classes(folder):
    (folder / "videos" / "a.mp4").unlink()
    for name in ("b.mp4", "YSKX3.mp4"):
        (folder / "videos" / name).rename(folder / name)
    (folder / "run").mkdir()
    (folder / "b.mp4").rename(folder / "run" / "b.mp4")
    (folder / "YSKX3.mp4").unlink()
    (folder / "videos").rmdir()
    clips = read_classified(folder)
    assert (clips.classes, [record.id for record in clips.records]) == (("run",), ["run/b.mp4"])


def test_charades_has_any_number_of_actions_by_their_codes(folder):
    path, names = write(folder / "test.csv", CHARADES), write(folder / "names.txt", ACTIONS)
    clips = read_classified(path, root=folder / "videos", classes=names)
    assert clips.classes == ("Opening a bag", "Sitting in a bed", "Holding a phone")
    assert {record.id: record.label for record in clips.records} == {"YSKX3": (1, 2), "N11GT": ()}
    assert clips.records[0].path == str(folder / "videos" / "YSKX3.mp4")
    assert clips.missing == ("N11GT",)
    assert clips.is_multi_label
    with pytest.raises(ValueError, match=r"names of the actions.*Charades_v1_classes\.txt"):
        read_classified(path)
    write(folder / "test.csv", CHARADES.replace("c147", "c148"))
    with pytest.raises(AnnotationError, match=r"test\.csv:2: expected codes of the 3 .*'c148'"):
        read_classified(path, classes=names)


@pytest.mark.parametrize(
    ("content", "classes", "message"),
    [
        ("a.mp4,0\nb.mp4,1\n", None, r"found numbers alone; set --config\.eval_data\.classes"),
        ("a.mp4,0\nb.mp4,2\n", ("x", "y"), r"labels below 2, of which there are names, found 2"),
        ("a.mp4,swim\nb.mp4,run\n", ("swim", "runs"), r"found 'run'; did you mean 'runs'"),
        (
            [{"video": "a.mp4", "caption": ["swim", "run"]}],
            None,
            r"found 1 of 1 without, the first a\.mp4",
        ),
    ],
)
def test_what_has_no_classes_is_refused(content, classes, message, folder):
    name = "list.csv" if isinstance(content, str) else "list.json"
    with pytest.raises(ValueError, match=message):
        read_classified(write(folder / name, content), classes=classes)


def test_an_empty_file_of_classes_is_named(folder):
    path = write(folder / "list.csv", "a.mp4,swim\nb.mp4,run\n")
    with pytest.raises(ValueError, match=r"none\.txt: expected .* found an empty file"):
        read_classified(path, classes=write(folder / "none.txt", ""))
