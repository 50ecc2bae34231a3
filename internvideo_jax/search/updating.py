"""Making an index, and bringing one up to date with the files that it is of."""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from internvideo_jax.evaluation.features import FailedClip
from internvideo_jax.evaluation.retrieval.metrics import normalized
from internvideo_jax.evaluation.window_features import WindowFeatures, extract_windows
from internvideo_jax.search.clusters import Clusters, find_centers, nearest_centers, starts_of
from internvideo_jax.search.index_file import Index, IndexedFile, IndexSettings

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel

# From so many vectors on they lie in clusters: fewer are compared one by one within 50 ms.
MIN_CLUSTERED = 250_000
# Centres serve until there are so many times as many vectors as they were found with.
_GROWTH = 2
# Seconds between two saves, at least, and for each second that the last one took.
_SAVE_EVERY, _SAVE_SHARE = 60.0, 20.0

Save = Callable[[Index], object]


@dataclasses.dataclass(frozen=True)
class Todo:
    """What an index lacks.

    Attributes:
      read: videos to read, new ones and those that were changed.
      kept: numbers of the files in the index that stay.
      gone: paths in the index that are not there any more.
    """

    read: tuple[IndexedFile, ...]
    kept: tuple[int, ...]
    gone: tuple[str, ...]


def compare(index: Index | None, paths: Sequence[str], folders: Collection[str] = ()) -> Todo:
    """Compares an index with files as they are, by their sizes and the times of their last change.

    Args:
      index: what there is; None is nothing.
      paths: absolute ones of all videos that are to be in it.
      folders: absolute ones of which `paths` has all videos: what the index has of other videos in
        them is gone.
    """
    files = {path: _as_it_is(path) for path in paths}
    known = index.files if index is not None else ()
    inside = tuple(f"{folder.rstrip(os.sep)}{os.sep}" for folder in folders)
    gone = {f.path for f in known if f.path not in files and f.path.startswith(inside)}
    same = {f.path for f in known if files.get(f.path) == f}
    left = files.keys() - same | gone
    kept = [number for number, file in enumerate(known) if file.path not in left]
    read = [file for path, file in files.items() if path not in same]
    return Todo(tuple(read), tuple(kept), tuple(sorted(gone)))


def _as_it_is(path: str) -> IndexedFile:
    try:
        return IndexedFile.now(path)
    # Whoever reads it will say why not.
    except OSError:
        return IndexedFile(path, 0, 0)


def update(
    index: Index | None,
    settings: IndexSettings,
    todo: Todo,
    model: "SavedModel",
    save: Save,
    *,
    batch_size: int = 8,
    num_threads: int | None = None,
    on_window: Callable[[], object] = lambda: None,
) -> tuple[int, list[FailedClip]]:
    """Embeds what an index lacks; it is saved every minute, and where this is interrupted.

    Args:
      index: what there is; None is nothing.
      settings: how windows are made.
      todo: from `compare`.
      model: one that compares clips with texts.
      save: takes the index as it is then.
      batch_size: windows that are held together at most.
      num_threads: decoding threads; by default one per CPU core.
      on_window: told of each window.

    Returns:
      How many windows are new, and what could not be read: files, which are not in the index then,
      and windows.

    Raises:
      ValueError: the model does not compare clips with texts.
    """
    results = extract_windows(
        [file.path for file in todo.read],
        model,
        settings.windows,
        num_frames=settings.num_frames,
        kind="embedding",
        batch_size=batch_size,
        num_threads=num_threads,
    )
    growing = _Growing(index, todo.kept, settings)
    failed: list[FailedClip] = []
    saved, took = time.monotonic(), 0.0
    try:
        for file, own in zip(todo.read, _by_file(results, on_window), strict=True):
            failed += [result for result in own if isinstance(result, FailedClip)]
            growing.add(file, [result for result in own if isinstance(result, WindowFeatures)])
            now = time.monotonic()
            if growing.num_new and now - saved >= max(_SAVE_EVERY, _SAVE_SHARE * took):
                save(growing.index())
                saved = time.monotonic()
                took = saved - now
    except BaseException:
        # The next run goes on there.
        if growing.num_new:
            save(growing.index())
        raise
    if len(growing):
        grown = growing.index()
        clustered = with_clusters(grown)
        if growing.is_changed or clustered is not grown:
            save(clustered)
    return growing.num_new, failed


def with_clusters(index: Index, *, least: int | None = None) -> Index:
    """The same windows, in clusters; itself where nothing is to be done.

    Args:
      index: perhaps in clusters already.
      least: windows from which on they are; None is `MIN_CLUSTERED`.
    """
    clusters = index.clusters
    if len(index) < (MIN_CLUSTERED if least is None else least) or (
        clusters and len(index) <= _GROWTH * clusters.made_of
    ):
        return index
    centers = find_centers(index.vectors)
    return _sorted(index, nearest_centers(index.vectors, centers), centers, len(index))


def _sorted(index: Index, numbers: np.ndarray, centers: np.ndarray, made_of: int) -> Index:
    """The same windows by the numbers of their clusters."""
    order = np.argsort(numbers, kind="stable")
    return dataclasses.replace(
        index,
        file_of=index.file_of[order],
        times=index.times[order],
        vectors=index.vectors[order],
        clusters=Clusters(centers, starts_of(numbers, len(centers)), made_of),
    )


def _by_file(
    results: Iterable[WindowFeatures | FailedClip], on_window: Callable[[], object]
) -> Iterator[list[WindowFeatures | FailedClip]]:
    for _, own in itertools.groupby(results, key=attrgetter("source")):
        windows = []
        for window in own:
            on_window()
            windows.append(window)
        yield windows


class _Growing:
    """What stays of an index, and windows that come to it.

    Args:
      index: it; None is nothing.
      kept: numbers of the files that stay.
      settings: how windows are made.

    Attributes:
      num_new: windows that have come.
      is_changed: whether anything came or went.
    """

    def __init__(self, index: Index | None, kept: Sequence[int], settings: IndexSettings):
        self._index, self._settings = index, settings
        self._files = [index.files[number] for number in kept] if index is not None else []
        self._file_of: list[int] = []
        self._times: list[tuple[float, float]] = []
        self._vectors: list[np.ndarray] = []
        self._rows = np.empty(0, np.int64)
        self._row_files = np.empty(0, np.int32)
        if index is not None:
            places = np.full(len(index.files), -1, np.int32)
            places[list(kept)] = np.arange(len(kept))
            self._rows = np.flatnonzero(places[index.file_of] >= 0)
            self._row_files = places[index.file_of[self._rows]]
        self.is_changed = index is not None and len(self._rows) < len(index)

    def __len__(self) -> int:
        return len(self._rows) + self.num_new

    @property
    def num_new(self) -> int:
        return len(self._vectors)

    def add(self, file: IndexedFile, windows: Sequence[WindowFeatures]) -> None:
        """Adds a file, unless none of its windows can be read."""
        if not windows:
            return
        self.is_changed = True
        self._file_of += [len(self._files)] * len(windows)
        self._files.append(file)
        self._times += [(window.start, window.end) for window in windows]
        self._vectors += [normalized(window.features, "windows") for window in windows]

    def index(self) -> Index:
        """All of it, of which there is at least one window."""
        old, rows = self._index, self._rows
        parts = []
        if self._vectors:
            file_of = np.array(self._file_of, np.int32)
            parts.append((file_of, np.array(self._times), np.stack(self._vectors)))
        if old is not None and len(rows):
            everything = len(rows) == len(old)
            times = old.times if everything else old.times[rows]
            vectors = old.vectors if everything else old.vectors[rows]
            parts.insert(0, (self._row_files, times, vectors))
        file_of, times, vectors = (
            columns[0] if len(columns) == 1 else np.concatenate(columns)
            for columns in zip(*parts, strict=True)
        )
        index = Index(self._settings, tuple(self._files), file_of, times, vectors)
        if old is None or old.clusters is None:
            return index
        clusters = old.clusters
        numbers = np.repeat(np.arange(len(clusters.centers)), np.diff(clusters.starts))[rows]
        new = nearest_centers(vectors[len(rows) :], clusters.centers)
        return _sorted(index, np.concatenate([numbers, new]), clusters.centers, clusters.made_of)
