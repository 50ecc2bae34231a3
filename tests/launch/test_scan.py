"""The command `scan`."""

import json

import numpy as np
import pytest

from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.launch import scan


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two good clips of 0.4 s, one that is cut, and one that never was a video."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "more").mkdir()
    frames = np.full((10, 32, 32, 3), 90, np.uint8)
    for name in ("a.mp4", "more/b.mp4"):
        synthetic.write_video(folder / name, frames)
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-50])
    (folder / "text.mp4").write_text("no video " * 100)
    (folder / "notes.txt").write_text("a.mp4,0\nmore/b.mp4,1\n")
    return folder


@pytest.fixture
def run(tmp_path, capsys):
    def call(*argv):
        (tmp_path / "r.json").unlink(missing_ok=True)
        code = scan.main([*map(str, argv), f"--json={tmp_path / 'r.json'}", "--workers=2"])
        return code, capsys.readouterr().out, json.loads((tmp_path / "r.json").read_text())

    return call


def test_good_files(run, world):
    code, out, report = run(world / "notes.txt", "--num_classes=2")
    assert code == 0
    assert f"{world}/notes.txt: 2 clips, format csv\n" in out
    assert "2 readable (0.8 s), 0 not" in out
    assert report["annotations"] == [
        {
            "path": f"{world}/notes.txt",
            "format": "csv",
            "clips": 2,
            "wrong": 0,
            "problems": [],
        }
    ]
    assert (report["clips"], report["readable"], report["unreadable"]) == (2, 2, [])
    assert report["readable_seconds"] == pytest.approx(0.8)


def test_a_folder_with_broken_files(run, world):
    code, out, report = run(world)
    assert code == 1
    assert "4 clips in " in out
    assert ": 2 readable (0.8 s), 2 not\n" in out
    cut, text = report["unreadable"]
    assert (cut["name"], cut["annotations"], cut["id"]) == (f"{world}/cut.mp4", None, None)
    assert "truncated" in cut["reason"]
    assert text["name"] == f"{world}/text.mp4"
    assert f"  {world}/cut.mp4   expected a complete video file, found a truncated one" in out


def test_annotations_with_bad_lines_and_missing_files(run, world, tmp_path):
    path = tmp_path / "train.jsonl"
    entries = [
        {"video": "a.mp4", "label": 1, "id": "first"},
        {"video": "a.mp4", "label": 7, "id": "second"},
        {"video": "a.mp4", "label": 0, "id": "again"},
        {"video": "gone.mp4", "label": 0},
        {"video": "../a.mp4", "label": 0},
        {"video": "more/b.mp4", "label": 0, "start": 0.1, "end": 0.3},
        {"video": "more/b.mp4", "label": 0, "start": 9},
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    code, out, report = run(path, f"--root={world}", "--num_classes=2")
    assert code == 1
    assert f"{path}: 2 of 7 entries are wrong" in out
    assert f"  {path}:2: expected a label from 0 to 1, found 7" in out
    (annotations,) = report["annotations"]
    assert (annotations["clips"], annotations["wrong"]) == (5, 2)
    assert [problem["line"] for problem in annotations["problems"]] == [2, 5]
    # Two entries are the same clip.
    assert (report["clips"], report["readable"]) == (4, 2)
    gone, late = report["unreadable"]
    assert (gone["annotations"], gone["id"]) == (str(path), "gone.mp4")
    assert "No such file" in gone["reason"]
    assert late["name"] == f"{world}/more/b.mp4 (9 s to the end)"
    assert "before the file's end at 0.400 s, found a start at 9 s" in late["reason"]


def test_an_annotation_file_that_is_missing(run, world, tmp_path):
    code, out, report = run(tmp_path / "none.csv", world / "a.mp4")
    assert code == 1
    assert "none.csv: expected an annotation file, or a folder" in out
    assert (report["clips"], report["readable"]) == (1, 1)


def test_a_clip_that_takes_too_long_is_reported(run, world, tmp_path):
    path = tmp_path / "long.mp4"
    synthetic.write_video(path, np.broadcast_to(np.uint8(90), (2000, 32, 32, 3)))
    code, _, report = run(path, "--timeout=0.001", "--every_frame")
    assert code == 1
    (clip,) = report["unreadable"]
    assert clip["name"] == str(path)
    assert clip["reason"] == "no end after 0.001 s: its process was killed"


def test_a_folder_without_videos(tmp_path, capsys):
    assert scan.main([str(tmp_path)]) == 2
    assert "expected a folder with videos" in capsys.readouterr().err


def test_a_wrong_root_lists_some_clips_only(run, tmp_path):
    count = scan.MAX_SHOWN_CLIPS + 7
    path = tmp_path / "train.csv"
    path.write_text("".join(f"{i}.mp4,0\n" for i in range(count)))
    code, out, report = run(path, f"--root={tmp_path / 'elsewhere'}")
    assert code == 1
    assert out.count("found No such file") == scan.MAX_SHOWN_CLIPS
    assert "  and 7 more; --json=FILE lists them all\n" in out
    assert len(report["unreadable"]) == count


def make_clips(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        synthetic.write_video(folder / name, np.full((4, 32, 32, 3), 90, np.uint8))


def test_class_folders_are_checked_as_for_training(run, tmp_path):
    make_clips(tmp_path, "x/Dog/1.mp4", "x/Dog/2.mp4", "x/dog/1.mp4", "x/cat/1.mp4", "x/cat/2.mp4")
    code, out, report = run(tmp_path / "x")
    assert code == 0
    assert f"{tmp_path}/x: a folder for each of 3 classes, 1 to 2 clips\n" in out
    assert "warning: " in out
    assert ["'Dog', 'dog'" in text for text in report["warnings"]] == [True, False]
    assert "a single clip" in report["warnings"][1]
    assert report["class_folders"][0]["clips"] == {"Dog": 2, "dog": 1, "cat": 2}
    (tmp_path / "x" / "empty").mkdir()
    code, out, report = run(tmp_path / "x")
    assert code == 1
    assert "found none in 'empty'; remove the folder" in out
    assert report["readable"] == 5


def test_labels_of_lists_are_looked_at(run, world):
    _, out, report = run(world / "notes.txt")
    assert "classes of a single clip cannot be both trained and evaluated on: 0, 1" in out
    assert len(report["warnings"]) == 1


def test_a_label_that_is_missing_is_warned_of_and_with_the_classes_refused(run, world, tmp_path):
    path, classes = tmp_path / "named.csv", tmp_path / "classes.txt"
    path.write_text("path,label\na.mp4,x\nmore/b.mp4,y\ncut.mp4,\n")
    classes.write_text("x\ny\n")
    _, out, _ = run(path, f"--root={world}")
    assert "1 clip has no label" in out
    code, out, report = run(path, f"--root={world}", f"--classes={classes}")
    assert code == 1
    assert f"{path}:4: expected a label" in out
    assert report["annotations"][0]["wrong"] == 1
    _, out, _ = run(path, f"--root={world}", "--num_classes=2")
    assert "--classes=FILE" in out


def test_a_folder_a_level_too_high_is_warned_of(run, tmp_path):
    make_clips(tmp_path, "a/x/1.mp4", "a/y/1.mp4", "b/x/1.mp4", "b/y/1.mp4")
    _, out, _ = run(tmp_path)
    assert f"did you mean {tmp_path}/a?" in out
