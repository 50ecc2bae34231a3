"""The file of an index: a `.safetensors` file of arrays, with a description in its header.

  vectors    F32 [N, D]   of the windows, of length 1; those of a cluster follow each other
  times      F64 [N, 2]   start and end of each window, seconds after its file's start
  file_of    I32 [N]      number of each window's file
  paths      U8  [P]      the files' paths, one after the other
  path_ends  I64 [F]      where each path ends
  sizes      I64 [F]      bytes of each file, and
  modified   I64 [F]      when it was changed last, in nanoseconds, as they were read
  centers    F32 [K, D]   where the vectors lie in clusters (`search.clusters`): their centres, and
  starts     I64 [K + 1]  the number of each one's first vector

Nothing of it is executed, and no number of it is believed before it has been compared with the
others. Vectors are mapped: only what is looked at is read.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from internvideo_jax.checksums import description_sha256, partial_checksum
from internvideo_jax.config import CheckedConfig, Frames, PositiveFactor, from_dict, to_dict
from internvideo_jax.convert.files.checkpoint import Checkpoint, CheckpointError
from internvideo_jax.convert.files.safetensors_file import (
    open_safetensors_file,
    write_safetensors_file,
)
from internvideo_jax.data.windows import Windows
from internvideo_jax.files import atomic_file, check_regular, parse_json
from internvideo_jax.search.clusters import Clusters

# In the header; another number, another layout.
_FORMAT = "internvideo_jax search index 1"
_DTYPES: dict[str, np.dtype[Any]] = {
    "vectors": np.dtype(np.float32),
    "times": np.dtype(np.float64),
    "file_of": np.dtype(np.int32),
    "paths": np.dtype(np.uint8),
    "path_ends": np.dtype(np.int64),
    "sizes": np.dtype(np.int64),
    "modified": np.dtype(np.int64),
    "centers": np.dtype(np.float32),
    "starts": np.dtype(np.int64),
}
_CLUSTERS = ("centers", "starts")
_PAIRS = {"vectors": 2, "times": 2, "centers": 2}


class IndexFileError(ValueError):
    """An index that is none, damaged, or of another version."""


@dataclasses.dataclass(frozen=True)
class IndexSettings(CheckedConfig):
    """How the windows of an index were made; all but `model` and `dtype` must agree to add to it.

    Attributes:
      model: what embeds them, as it was named.
      model_digest: of its description, which holds the checksums of its weights.
      dtype: what it computed in.
      num_frames: frames of a window that it saw.
      window: seconds of a window.
      stride: seconds from the start of one to the start of the next.
    """

    model: str
    model_digest: str
    dtype: str
    num_frames: Frames
    window: PositiveFactor
    stride: PositiveFactor

    def __post_init__(self) -> None:
        super().__post_init__()
        Windows(self.window, self.stride)

    @property
    def windows(self) -> Windows:
        """How videos are cut."""
        return Windows(self.window, self.stride)

    def differences(self, other: "IndexSettings") -> list[str]:
        """What keeps windows of the one from those of the other, in words."""
        names = ("model_digest", "num_frames", "window", "stride")
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return [f"{name}: expected {own}, found {new}" for name, own, new in pairs if own != new]


@dataclasses.dataclass(frozen=True)
class IndexedFile:
    """A video in an index, as it was when it was read.

    Attributes:
      path: absolute.
      size: in bytes.
      modified: when it was changed last, in nanoseconds.
    """

    path: str
    size: int
    modified: int

    @classmethod
    def now(cls, path: str) -> "IndexedFile":
        """A file as it is.

        Raises:
          OSError: it is not there.
        """
        status = os.stat(path)
        return cls(path, status.st_size, status.st_mtime_ns)


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Embedded windows of videos.

    Attributes:
      settings: how they were made.
      files: F videos.
      file_of: number of each window's video, int32 `[N]`.
      times: its start and end, seconds after the file's start, float64 `[N, 2]`.
      vectors: float32 `[N, D]`, of length 1; mapped from the file, if they are in one.
      clusters: how these lie together; None where there are too few.
    """

    settings: IndexSettings
    files: tuple[IndexedFile, ...]
    file_of: Int[np.ndarray, " N"]
    times: Float[np.ndarray, "N 2"]
    vectors: Float[np.ndarray, "N D"]
    clusters: Clusters | None = None

    def __len__(self) -> int:
        return len(self.vectors)


def write_index(path: str | os.PathLike[str], index: Index) -> None:
    """Writes an index; the file is the earlier one, or the new one whole.

    Raises:
      DiskFullError, OSError: it cannot be written; as of `files.atomic_file`.
    """
    names = [os.fsencode(file.path) for file in index.files]
    arrays = {
        "vectors": index.vectors,
        "times": index.times,
        "file_of": index.file_of,
        "paths": np.frombuffer(b"".join(names), np.uint8),
        "path_ends": np.cumsum([len(name) for name in names]),
        "sizes": np.array([file.size for file in index.files]),
        "modified": np.array([file.modified for file in index.files]),
    }
    clusters = index.clusters
    if clusters is not None:
        arrays |= {"centers": clusters.centers, "starts": clusters.starts}
    arrays = {name: np.ascontiguousarray(x, _DTYPES[name]) for name, x in arrays.items()}
    described: dict[str, Any] = {
        "settings": to_dict(index.settings),
        "clustered": clusters.made_of if clusters else 0,
        "checksums": {name: _checksum(x) for name, x in arrays.items()},
    }
    described["sha256"] = description_sha256(described)
    metadata = {"format": _FORMAT, "description": json.dumps(described)}
    declared = {name: (x.shape, x.dtype) for name, x in arrays.items()}
    with atomic_file(path) as temporary:
        write_safetensors_file(temporary, declared, arrays.items(), metadata)


def read_index(path: str | os.PathLike[str], *, check_vectors: bool = False) -> Index:
    """Opens an index.

    Args:
      path: its file.
      check_vectors: whether to compare all vectors with their checksum, too; otherwise those that
        are looked at must be of length 1 (`search.nearest`).

    Raises:
      FileNotFoundError: there is no such file.
      IndexFileError: it is no index, damaged, or of another version.
    """
    file, expected = Path(path), f"{path}: expected an index that `internvideo-jax index` wrote"
    try:
        check_regular(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{expected}, found nothing there; make it first") from None
    except ValueError as error:
        raise IndexFileError(f"{error}; name an index that `internvideo-jax index` wrote") from None
    try:
        return _read(open_safetensors_file(file), check_vectors)
    except CheckpointError as error:
        raise IndexFileError(
            f"{expected}, found another or a damaged file ({error}); if it was an index, remove it"
            " and make it anew"
        ) from None
    except ValueError as error:
        raise IndexFileError(f"{file}: {error}") from None


def _read(file: Checkpoint, check_vectors: bool) -> Index:
    if (found := file.metadata.get("format")) != _FORMAT:
        raise ValueError(
            f"expected {_FORMAT!r}, found {found!r}; it is no index, or of another version: make"
            " one with `internvideo-jax index`"
        )
    described = parse_json(file.metadata.get("description", ""), "its description")
    _expect(isinstance(described, dict), "a description")
    _expect(described.get("sha256") == description_sha256(described), "a whole description")
    settings = from_dict(IndexSettings, described.get("settings", {}), "its settings")
    made_of, sums = described.get("clustered"), described.get("checksums")
    _expect(type(made_of) is int and isinstance(sums, dict), "checksums and clusters, or none")
    arrays = _arrays(file, bool(made_of))
    _check_sums(arrays, sums, check_vectors)
    vectors, times, file_of = (arrays[name] for name in ("vectors", "times", "file_of"))
    files = _files(arrays)
    _expect(len(vectors) == len(times) == len(file_of), "as many times and files as vectors")
    _expect(vectors.size, "vectors of some width")
    _expect(times.shape[1] == 2, "two times of each window")
    _expect(np.isfinite(times).all() and (times[:, 0] <= times[:, 1]).all(), "windows in order")
    _expect(((file_of >= 0) & (file_of < len(files))).all(), "windows of files that it names")
    clusters = None
    if made_of:
        clusters = Clusters(arrays["centers"], arrays["starts"], made_of)
        _expect(clusters.starts[-1] == len(vectors), "clusters of all vectors")
        _expect(clusters.centers.shape[1] == vectors.shape[1], "centres as wide as vectors")
    return Index(settings, files, file_of, times, vectors, clusters)


def _arrays(file: Checkpoint, has_clusters: bool) -> dict[str, np.ndarray]:
    names = [name for name in _DTYPES if has_clusters or name not in _CLUSTERS]
    _expect(set(file) == set(names), f"the arrays {', '.join(names)}")
    for name in names:
        tensor = file[name]
        _expect(tensor.dtype == _DTYPES[name], f"{name} of {_DTYPES[name]}")
        _expect(len(tensor.shape) == _PAIRS.get(name, 1), f"{name} of {_PAIRS.get(name, 1)} axes")
    return {name: file[name].read() for name in names}


def _files(arrays: Mapping[str, np.ndarray]) -> tuple[IndexedFile, ...]:
    ends, sizes, modified = (arrays[name] for name in ("path_ends", "sizes", "modified"))
    _expect(len(ends) == len(sizes) == len(modified), "a size and a time of each path")
    starts = np.concatenate([[0], ends])
    _expect((starts[1:] > starts[:-1]).all(), "paths one after the other")
    text = arrays["paths"].tobytes()
    _expect(starts[-1] == len(text), "paths of their whole length")
    bounds = itertools.pairwise(starts.tolist())
    paths = [os.fsdecode(text[start:end]) for start, end in bounds]
    _expect(all(os.path.isabs(path) and "\0" not in path for path in paths), "absolute paths")
    return tuple(map(IndexedFile, paths, sizes.tolist(), modified.tolist()))


def _check_sums(
    arrays: Mapping[str, np.ndarray], sums: Mapping[str, Any], check_vectors: bool
) -> None:
    checked = [name for name in arrays if check_vectors or name != "vectors"]
    damaged = [name for name in checked if sums.get(name) != _checksum(arrays[name])]
    _expect(not damaged, "arrays with the checksums that were saved", ", ".join(damaged))


def _checksum(array: np.ndarray) -> int:
    bits = np.ascontiguousarray(array).reshape(-1)
    return partial_checksum(bits.view(np.uint32) if bits.itemsize == 8 else bits)


def _expect(holds: Any, what: str, found: str = "others") -> None:
    if not holds:
        raise ValueError(
            f"expected {what}, found {found}: the index is damaged; remove it and make it anew"
            " with `internvideo-jax index`"
        )
