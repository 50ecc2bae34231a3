"""The file of an index: what is written is read, and what is damaged is refused."""

import dataclasses
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from internvideo_jax.search.clusters import Clusters
from internvideo_jax.search.index_file import (
    Index,
    IndexedFile,
    IndexFileError,
    IndexSettings,
    read_index,
    write_index,
)
from tests.search.indices import SETTINGS, random_index


@pytest.mark.parametrize("has_clusters", [False, True])
def test_what_is_written_is_read(tmp_path, has_clusters):
    index = random_index(12)
    files = (IndexedFile(os.fsdecode(b"/videos/\xff.mp4"), 2**40, -1), *index.files[1:])
    clusters = Clusters(index.vectors[:2].copy(), np.array([0, 5, 12]), 12)
    index = dataclasses.replace(index, files=files, clusters=clusters if has_clusters else None)
    write_index(tmp_path / "new" / "index", index)
    # Over the first.
    write_index(tmp_path / "new" / "index", index)
    assert os.listdir(tmp_path / "new") == ["index"]
    found = read_index(tmp_path / "new" / "index", check_vectors=True)
    assert (found.settings, found.files) == (SETTINGS, files)
    for name in ("file_of", "times", "vectors"):
        np.testing.assert_array_equal(getattr(found, name), getattr(index, name))
    assert (found.clusters is not None) == has_clusters
    if has_clusters:
        assert found.clusters.made_of == 12
        np.testing.assert_array_equal(found.clusters.starts, clusters.starts)


def test_any_flipped_bit_of_its_tables_is_noticed(tmp_path):
    path = tmp_path / "index"
    write_index(path, random_index(6))
    content = path.read_bytes()
    vectors = 4 * read_index(path).vectors.size
    start = 8 + int.from_bytes(content[:8], "little")
    for position in [*range(0, start, 7), *range(start + vectors, len(content), 5)]:
        changed = bytearray(content)
        changed[position] ^= 4
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=str(path)):
            read_index(path)
    changed = bytearray(content)
    changed[start] ^= 4
    path.write_bytes(changed)
    read_index(path)
    with pytest.raises(IndexFileError, match="found vectors: the index is damaged"):
        read_index(path, check_vectors=True)


def test_what_is_no_index(tmp_path):
    path = tmp_path / "index"
    with pytest.raises(FileNotFoundError):
        read_index(path)
    write_index(path, random_index(6))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IndexFileError, match="another or a damaged file"):
        read_index(path)
    save_file({"vectors": np.ones((2, 3), np.float32)}, path)
    with pytest.raises(IndexFileError, match="found None; it is no index, or of another version"):
        read_index(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="regular file, found a pipe"):
        read_index(path)


def test_numbers_that_do_not_fit_each_other_are_refused(tmp_path):
    index = random_index(6)
    vectors = index.vectors
    for changes, message in (
        ({"file_of": index.file_of + 1}, "windows of files that it names"),
        ({"times": index.times[:, ::-1]}, "windows in order"),
        ({"times": index.times * np.nan}, "windows in order"),
        ({"times": index.times[:5]}, "as many times and files as vectors"),
        ({"vectors": vectors[:, :0]}, "vectors of some width"),
        ({"files": (IndexedFile("a.mp4", 1, 1),) * 3}, "absolute paths"),
        ({"clusters": Clusters(vectors[:2], np.array([0, 1, 5]), 1)}, "clusters of all vectors"),
        ({"clusters": Clusters(vectors[:1, 1:], np.array([0, 6]), 1)}, "as wide as vectors"),
        ({"clusters": Clusters(vectors[:1], np.array([0, 2**62]), 1)}, "clusters of all vectors"),
    ):
        write_index(tmp_path / "index", dataclasses.replace(index, **changes))
        with pytest.raises(IndexFileError, match=message):
            read_index(tmp_path / "index")
    for starts in ([0, 7, 6], [1, 6], [0]):
        with pytest.raises(ValueError, match="clusters"):
            Clusters(vectors[:2], np.array(starts), 1)


def test_settings_have_ranges_and_say_how_they_differ():
    with pytest.raises(ValueError, match="stride above 0 and of at most the window's 1 s"):
        IndexSettings("m", "d", "float32", 4, 1.0, 2.0)
    other = dataclasses.replace(SETTINGS, model="elsewhere", dtype="bfloat16", num_frames=8)
    assert SETTINGS.differences(other) == ["num_frames: expected 4, found 8"]


def test_an_index_has_a_length():
    assert len(random_index(7)) == 7
    assert isinstance(random_index(7), Index)
