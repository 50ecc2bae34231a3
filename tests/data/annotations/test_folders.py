"""Clips that no list names."""

import os

import pytest

from internvideo_jax.data.annotations import folders
from internvideo_jax.data.annotations.folders import (
    find_videos,
    has_class_folders,
    level_warnings,
    named_videos,
    read_class_folders,
)


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_in(folder, paths):
    return [os.path.relpath(path, folder) for path in paths]


def test_hidden_files_and_folders_are_no_videos(tmp_path):
    make(tmp_path, "b/c.MP4", "a.mkv", "notes.txt", "Thumbs.db")
    make(tmp_path, "._a.mkv", ".hidden.mp4", "b/.thumbnails/c.mp4")
    make(tmp_path, ".ipynb_checkpoints/d.mp4", "__MACOSX/a.mkv", "b/@eaDir/c.mp4")
    assert names_in(tmp_path, find_videos(tmp_path)) == ["a.mkv", "b/c.MP4"]


def test_a_folder_that_is_named_may_be_hidden(tmp_path):
    make(tmp_path, ".cache/a.mp4")
    assert names_in(tmp_path, find_videos(tmp_path / ".cache")) == [".cache/a.mp4"]


def test_linked_folders_are_searched(tmp_path):
    make(tmp_path, "disk/x/a.mp4", "videos/b.mp4")
    (tmp_path / "videos/more").symlink_to(tmp_path / "disk")
    assert names_in(tmp_path, find_videos(tmp_path / "videos")) == [
        "videos/b.mp4",
        "videos/more/x/a.mp4",
    ]
    (tmp_path / "link").symlink_to(tmp_path / "videos")
    assert len(find_videos(tmp_path / "link")) == 2


def test_links_neither_loop_nor_multiply(tmp_path):
    make(tmp_path, "z/a.mp4")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "z/other").symlink_to(tmp_path / "z")
    folder = tmp_path / "z"
    # Each level is reached in two ways from the one above: 2^40 paths.
    for _ in range(40):
        (folder / "1").mkdir()
        (folder / "2").symlink_to("1")
        folder = folder / "1"
    (tmp_path / "before").symlink_to(tmp_path / "z")
    # By the name under which it lies in the folder, whatever links come first.
    assert names_in(tmp_path, find_videos(tmp_path)) == ["z/a.mp4"]


def test_links_to_files_are_videos_dangling_ones_too(tmp_path):
    make(tmp_path, "a.mp4")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    (tmp_path / "c.mp4").symlink_to("nowhere")
    assert names_in(tmp_path, find_videos(tmp_path)) == ["a.mp4", "b.mp4", "c.mp4"]


def test_named_files_are_taken_as_they_are_and_once(tmp_path):
    make(tmp_path, "b.mp4", "x/.a.mp4", "x/c.txt", "x/d.mp4")
    named = [tmp_path / "x", tmp_path / "b.mp4", tmp_path / "x/d.mp4", tmp_path / "x/.a.mp4"]
    assert names_in(tmp_path, named_videos(named)) == ["x/d.mp4", "b.mp4", "x/.a.mp4"]


def test_what_has_no_videos_is_named(tmp_path):
    make(tmp_path, "x/._a.mp4")
    with pytest.raises(ValueError, match=r"/x: expected a folder with videos .*, found none"):
        named_videos([tmp_path / "x"])
    with pytest.raises(ValueError, match=r"found nothing at .*/y, z"):
        named_videos([tmp_path / "x", tmp_path / "y", "z"])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match="can be searched for videos, found 'Permission denied'"):
        find_videos(tmp_path)


def test_a_folder_may_go_while_its_own_is_searched(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    (tmp_path / "a.mp4").touch()
    entries = folders._entries

    def read(folder):
        found = entries(folder)
        (tmp_path / "gone").rmdir()
        return found

    monkeypatch.setattr(folders, "_entries", read)
    assert find_videos(tmp_path) == [str(tmp_path / "a.mp4")]


def test_a_folder_for_each_class(tmp_path):
    make(tmp_path, "wave/b.mp4", "clap hands/2.mkv", "wave/more/a.mp4", "README.md")
    make(tmp_path, ".git/a.mp4", "wave/._b.mp4", "__MACOSX/wave/b.mp4")
    (tmp_path / "linked").symlink_to(tmp_path / "wave")
    clips = read_class_folders(tmp_path)
    assert [(os.path.relpath(clip.path, tmp_path), clip.label) for clip in clips] == [
        ("clap hands/2.mkv", "clap hands"),
        ("linked/b.mp4", "linked"),
        ("linked/more/a.mp4", "linked"),
        ("wave/b.mp4", "wave"),
        ("wave/more/a.mp4", "wave"),
    ]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.mp4"], "found no folders"),
        (["x/a.mp4", "b.mp4"], "found 'b.mp4' beside them"),
        (["x/a.mp4", "y/notes.txt"], "found none in 'y'"),
        (["x\n/a.mp4"], r"found the name 'x\\n'"),
        (["x /a.mp4"], "found the name 'x '"),
        ([b"x\xff/a.mp4".decode(errors="surrogateescape")], "found the name"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, names, found):
    make(tmp_path, *names)
    with pytest.raises(ValueError, match=f"expected one folder of videos for each class, {found}"):
        read_class_folders(tmp_path)


def test_folders_stand_for_classes_where_all_videos_lie_in_them(tmp_path):
    make(tmp_path, "a/x/1.mp4", "a/notes.txt", "b/x/1.mp4", "b/2.mp4", "c/notes/1.txt")
    found = {name: has_class_folders(tmp_path / name) for name in "abc"}
    assert found == {"a": True, "b": False, "c": False}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["train/x/1.mp4", "train/y/1.mp4", "train/z/1.mp4", "test/x/1.mp4", "test/y/1.mp4"],
            "x, y",
        ),
        (["train/x/1.mp4", "train/y/2.mp4", "test/z/1.mp4"], "no video lies in"),
        (["x/1.mp4", "y/more/2.mp4"], None),
        # One name several classes may well share.
        (["x/1.mp4", "x/more/1.mp4", "y/more/2.mp4"], None),
        (["train/x/1.mp4", "train/y/1.mp4", "test/x/1.mp4", "test/y/1.mp4", "odd/1.mp4"], "x, y"),
    ],
)
def test_folders_of_classes_a_level_deeper_are_said(tmp_path, names, said):
    found = level_warnings(tmp_path, [str(tmp_path / name) for name in names])
    assert len(found) == (said is not None)
    for text in found:
        assert said in text
        assert f"did you mean {tmp_path}/train?" in text
