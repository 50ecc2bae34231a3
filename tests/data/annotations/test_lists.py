"""Lists of clips on disk: made once, mapped by all, and as they were written."""

import json
import logging
import os
import pickle
import random
import socket
import subprocess
import sys
import time

import pytest

from internvideo_jax.data.annotations import lists
from internvideo_jax.data.annotations.lists import check_annotations, read_annotations
from internvideo_jax.data.annotations.records import AnnotationError, ClipRecord

OLD = time.time_ns() - 10**12


@pytest.fixture
def builds(monkeypatch):
    """Which files were read, not only opened."""
    made, build = [], lists.build
    monkeypatch.setattr(lists, "build", lambda path, *rest: made.append(path) or build(path, *rest))
    return made


@pytest.fixture
def hashed(monkeypatch):
    """How many files were read for their checksums."""
    made, digest = [], lists.hashlib.file_digest
    monkeypatch.setattr(lists.hashlib, "file_digest", lambda *file: made.append(1) or digest(*file))
    return made


def write(path, count=1000):
    path.write_text(
        "".join(
            json.dumps({"video": f"{i % 7}/{i}.mp4", "label": [i % 3, 3], "start": i / 8}) + "\n"
            for i in range(count)
        )
    )
    os.utime(path, ns=(OLD, OLD))
    return path


def record(root, i):
    path = f"{i % 7}/{i}.mp4"
    return ClipRecord(f"{path}@{i / 8}-", f"{root}/{path}", i / 8, None, (i % 3, 3))


def test_records_are_those_of_the_file_wherever_one_looks(home, tmp_path):
    found = read_annotations(write(tmp_path / "a.jsonl"))
    expected = [record(tmp_path, i) for i in range(1000)]
    assert list(found) == expected
    assert [found[i] for i in range(-1000, 1000)] == expected * 2
    assert expected[5] in found
    for part in (slice(130, 777), slice(None, None, -1), slice(900, 5, -7), slice(3, 3)):
        assert list(found[part]) == [found[part][i] for i in range(len(found[part]))]
        assert list(found[part]) == expected[part]
        assert list(pickle.loads(pickle.dumps(found[part]))) == expected[part]
    assert list(found[100:][10:20]) == expected[110:120]
    with pytest.raises(IndexError):
        found[1000]
    parts = (found, found[1:], found[::-1])
    assert len({part.fingerprint for part in parts}) == 3


def test_a_list_is_read_once(home, builds, hashed, tmp_path):
    path = write(tmp_path / "a.jsonl")
    first = read_annotations(path)
    assert list(read_annotations(path, num_classes=4)) == list(first)
    assert (len(builds), len(hashed)) == (1, 1)
    # Of a copy, or a file of another date, the content is the same.
    (tmp_path / "more").mkdir()
    copy = tmp_path / "more" / "b.jsonl"
    copy.write_bytes(path.read_bytes())
    os.utime(path)
    assert read_annotations(path).fingerprint == read_annotations(copy).fingerprint
    assert read_annotations(copy)[3] == record(tmp_path / "more", 3)
    assert len(builds) == 1
    # What changed a moment ago may change again at the same time and size.
    assert len(hashed) == 4
    text = path.read_text()
    path.write_text(text.replace("999.mp4", "99x.mp4"))
    assert read_annotations(path)[999].path.endswith("99x.mp4")
    assert len(builds) == 2
    assert len(list(home.glob("*.clips"))) == 2
    assert not list(home.glob("*.partial"))


def test_what_a_list_depends_on(home, builds, tmp_path):
    path = tmp_path / "frames.txt"
    path.write_text("a 3 1\nb 4 2\n")
    (first, _), (second, _) = (
        read_annotations(path, frame_pattern=name) for name in ("{}.png", "{:05}.jpg")
    )
    assert (first.frame_pattern, second.frame_pattern) == ("{}.png", "{:05}.jpg")
    assert len(builds) == 2
    with pytest.raises(AnnotationError, match=r"frames\.txt:2: expected a label from 0 to 1"):
        read_annotations(path, num_classes=2, frame_pattern="{}.png")
    # The wrong way to look at it has left no trace.
    assert len(read_annotations(path, frame_pattern="{}.png")) == 2
    assert len(builds) == 3


@pytest.mark.parametrize("paths", ["/data/x/{}.mp4", "../data/x/{}.mp4"])
def test_roots_are_checked_whenever_a_list_is_opened(home, tmp_path, paths):
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{paths.format(i)},0\n" for i in range(9)))
    for root in ("/data", "/data/x") if paths[0] == "/" else ("/data",):
        assert read_annotations(path, root=root)[8].path == "/data/x/8.mp4"
    with pytest.raises(AnnotationError, match="9 of 9 entries are wrong"):
        read_annotations(path, root="/dat")
    assert read_annotations(path, root="/data")[8].path == "/data/x/8.mp4"


def test_records_beside_errors_are_there_as_long_as_they_are_used(home, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{i % 90}.mp4,{i % 10}\n" for i in range(100)))
    found = check_annotations(path, num_classes=10)
    assert found.error.num_problems == 10
    assert found.error.problems[0].line == 91
    assert found.error.problems[0].found == "'0.mp4' again, first on line 1"
    assert [clip.id for clip in found.records] == [f"{i}.mp4" for i in range(90)]
    assert len(found.records[5:]) == 85
    assert not list(home.glob("*.clips"))
    assert not list(home.glob("*.partial"))


def test_a_home_that_cannot_be_written_is_replaced(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(lists.tempfile, "gettempdir", lambda: str(tmp_path))
    path = write(tmp_path / "a.jsonl", 3)
    with caplog.at_level(logging.WARNING):
        assert len(read_annotations(path)) == 3
    assert "cannot be written" in caplog.text
    (apart,) = tmp_path.glob("internvideo_jax-*")
    assert (apart.stat().st_mode & 0o777, len(list(apart.glob("*.clips")))) == (0o700, 1)
    monkeypatch.setattr(lists.os, "getuid", lambda: 12345)
    apart.rename(tmp_path / "internvideo_jax-12345")
    with pytest.raises(PermissionError, match="another user's: set INTERNVIDEO_HOME"):
        read_annotations(path)


def test_what_killed_processes_have_left_is_removed(home, tmp_path):
    home.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours, theirs = (f"x.{name}.{dead.pid}.partial" for name in (socket.gethostname(), "elsewhere"))
    running = f"x.{socket.gethostname()}.{os.getpid()}.partial"
    for name, age in (
        ("old.partial", 10**5),
        ("new.partial", 10),
        (ours, 10),
        (theirs, 10),
        (running, 10),
    ):
        (home / name).touch()
        os.utime(home / name, (time.time() - age,) * 2)
    read_annotations(write(tmp_path / "a.jsonl", 3))
    assert {file.name for file in home.glob("*.partial")} == {"new.partial", theirs, running}


@pytest.mark.parametrize("length", [0, 10, -100, None], ids=["empty", "begun", "cut", "other"])
def test_damaged_files_of_a_home_are_made_anew(home, builds, tmp_path, length):
    path = write(tmp_path / "a.jsonl")
    read_annotations(path)
    for kept in home.iterdir():
        data = kept.read_bytes()
        kept.write_bytes(data[:length] if length is not None else bytes([255]) * len(data))
    assert read_annotations(path)[7] == record(tmp_path, 7)
    assert len(builds) == 2


def test_a_damaged_entry_names_the_file(home, tmp_path):
    path = write(tmp_path / "a.jsonl")
    read_annotations(path)
    (kept,) = home.glob("*.clips")
    data = bytearray(kept.read_bytes())
    data[:10] = bytes([255]) * 10
    kept.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{kept}: expected .* delete it"):
        read_annotations(path)[0]


def test_a_file_that_changes_while_it_is_read(home, tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", 3)
    build = lists.build

    def change(*arguments):
        built = build(*arguments)
        write(path, 4)
        return built

    monkeypatch.setattr(lists, "build", change)
    with pytest.raises(AnnotationError, match="nobody changes while it is read"):
        read_annotations(path)
    assert not list(home.glob("*.clips"))


def test_processes_may_read_a_list_at_once(home, tmp_path):
    path = write(tmp_path / "a.jsonl", 20_000)
    code = f"""if True:
        from internvideo_jax.data.annotations.lists import read_annotations
        found = read_annotations({str(path)!r})
        print(len(found), found[17].id)
    """
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate()[0] for process in processes}
    assert printed == {f"20000 {record(tmp_path, 17).id}\n"}
    assert [file.suffix for file in home.iterdir() if file.suffix != ".sha256"] == [".clips"]


def test_numbered_ids(home, tmp_path):
    rng = random.Random(0)
    names = [rng.choice(("a", "b", "a#2", "a#2#2", "b#3", "c")) for _ in range(60)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"video": name} for name in names]))
    expected, counts = [], {}
    for name in names:
        unique = name
        if name in expected:
            counts[name] = counts.get(name, 1) + 1
            while f"{name}#{counts[name]}" in expected:
                counts[name] += 1
            unique = f"{name}#{counts[name]}"
        expected.append(unique)
    found = read_annotations(path)
    assert [clip.id for clip in found] == expected
    assert [clip.path for clip in found] == [f"{tmp_path}/{name}" for name in names]


def test_no_id_is_the_same_as_another(tmp_path):
    entries = [
        {"video": "a@b.mp4", "start": 1, "end": 20.5},
        {"video": "a@b.mp4", "start": 1e-05},
        {"video": "a@b.mp4"},
        {"video": "c.mp4"},
    ]
    path = tmp_path / "a.jsonl"
    for name in ("a@b.mp4@1.0-20.5", "a@b.mp4@1e-05-", "a@b.mp4", "a@b.mp4@1.0-20.6"):
        entries[-1]["id"] = name
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        if name.endswith("6"):
            assert read_annotations(path)[3].id == name
        else:
            with pytest.raises(AnnotationError, match=f"jsonl:4: .*found '{name}' again"):
                read_annotations(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"audio": "a/x.wav", "label": 1}\n{"audio": "y.FLAC", "label": 0}\n'),
        ("a.csv", "a/x.wav,1\ny.FLAC,0\n"),
        ("a.txt", "s a/x.wav 10 -1 -1 1\ns y.FLAC 10 -1 -1 0\n"),
        ("a.json", '[{"audio": "a/x.wav", "caption": "rain"}, {"audio": "y.FLAC"}]'),
    ],
)
def test_lists_of_sound(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    found = read_annotations(path)
    assert [clip.id for clip in found] == ["a/x.wav", "y.FLAC"]
    assert {clip.media for clip in found} == {"audio"}


def test_media_are_told_by_names():
    kinds = {"x.mp4": "video", "x.JPG": "image", "x": "video", "x.opus": "audio"}
    assert {name: ClipRecord(name, f"/{name}").media for name in kinds} == kinds
    assert ClipRecord("x", "/x", num_frames=3).media == "images"
