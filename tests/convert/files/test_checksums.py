"""Sums of files in the background."""

import hashlib

import pytest

from internvideo_jax.convert.files import checksums
from internvideo_jax.convert.files.checksums import Checksums


@pytest.mark.parametrize("size", [0, 1, 10, 11, 35])
def test_sums_are_those_of_hashlib(size, tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_PIECE_BYTES", 10)
    file = tmp_path / "file"
    file.write_bytes(bytes(range(size)))
    with Checksums() as sums:
        assert sums.wait([file]) == {file: hashlib.sha256(file.read_bytes()).hexdigest()}


def test_a_file_is_hashed_once_however_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_bytes(b"before")
    with Checksums() as sums:
        sums.start(file)
        before = sums.wait([file])
        file.write_bytes(b"after")
        relative = file.relative_to(tmp_path)
        assert sums.wait([relative]) == {relative: before[file]}


def test_leaving_stops_the_work(tmp_path):
    # Endless: only the stop lets this test end.
    with Checksums() as sums:
        sums.start(checksums.Path("/dev/zero"))


def test_a_file_that_vanished_is_an_error(tmp_path):
    with Checksums() as sums, pytest.raises(FileNotFoundError):
        sums.wait([tmp_path / "absent"])
