import errno
import json
import os
import shutil

import pytest

from internvideo_jax import files


def nested(depth):
    return "[" * depth + "]" * depth


def test_json_of_any_origin_is_read_within_limits(tmp_path):
    path = tmp_path / "value.json"
    path.write_text(json.dumps({"a": [1, 2.5, None], "deep": json.loads(nested(60))}))
    assert files.read_json(path)["a"] == [1, 2.5, None]
    with pytest.raises(ValueError, match=r"value\.json: expected at most 10 bytes"):
        files.read_json(path, max_bytes=10)


@pytest.mark.parametrize("text", ["{", "NaN", "[Infinity]", "\xff", "9" * 10_000])
def test_what_is_no_json(text):
    with pytest.raises(ValueError, match=r"here: not valid JSON"):
        files.parse_json(text.encode("latin-1"), "here")


@pytest.mark.parametrize("depth", [66, 1000, 200_000])
@pytest.mark.parametrize("wrap", ['{{"a": {}}}', "[0, {}]"])
def test_json_that_nests_too_deep(depth, wrap):
    with pytest.raises(ValueError, match="here: expected JSON of at most 64 levels"):
        files.parse_json(wrap.format(nested(depth)), "here")


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name, kind in {"pipe": "pipe", "endless": "device", ".": "folder"}.items():
        with pytest.raises(ValueError, match=f"expected a regular file, found a {kind}"):
            files.read_json(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "absent")


def write_to_a_full_disk():
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def fail_as_tensorstore_does():
    raise ValueError(f"RESOURCE_EXHAUSTED: Error writing: {os.strerror(errno.ENOSPC)} [source...]")


def fail_as_orbax_does():
    try:
        fail_as_tensorstore_does()
    except ValueError as error:
        raise RuntimeError("a save has failed") from error


@pytest.mark.parametrize(
    "write", [write_to_a_full_disk, fail_as_tensorstore_does, fail_as_orbax_does]
)
@pytest.mark.parametrize("make", [files.atomic_file, files.atomic_directory])
def test_a_disk_that_fills_up_is_named_with_needed_and_free_bytes(
    tmp_path, monkeypatch, make, write
):
    free = iter([3 * 10**9, 1_234_000_000])
    usage = lambda path: shutil._ntuple_diskusage(0, 0, next(free))  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(files.DiskFullError) as caught, make(tmp_path / "out", 2 * 10**9):
        write()
    assert caught.value.filename == str(tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert "expected 2.00 GB of free disk, found 1.23 GB: make room" in caught.value.strerror
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [files.atomic_file, files.atomic_directory])
def test_too_little_room_is_found_before_anything_is_made(tmp_path, make):
    with pytest.raises(files.DiskFullError, match=r"expected 1000000\.00 TB of free disk, found"):
        with make(tmp_path / "folder" / "out", 10**18):
            raise AssertionError("it has begun")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(KeyError), files.atomic_directory(tmp_path / "out"):
        raise KeyError("a")
    # The file whose disk is full, not the one around it.
    with pytest.raises(files.DiskFullError, match="inner"), files.atomic_file(tmp_path / "outer"):
        with files.atomic_file(tmp_path / "inner"):
            write_to_a_full_disk()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (20e6, "20.0 MB"), (4.28e9, "4.28 GB")],
)
def test_numbers_of_bytes(nbytes, text):
    assert files.readable_bytes(int(nbytes)) == text
