"""Search in an index of very many windows."""

import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from internvideo_jax.launch.benchmarks.figures import Figure, Figures
from internvideo_jax.launch.benchmarks.runner import run_apart, say
from internvideo_jax.launch.benchmarks.workdir import working_folder

if TYPE_CHECKING:
    from internvideo_jax.search.index_file import Index

THREADS = 2
TOP = 10
MAX_EXACT_MS, MAX_CLUSTERED_MS, MIN_RECALL = 150, 20, 0.95
# Windows of a video, fewer than are to be found, and videos about a topic. Vectors go from a topic
# to a video, from there to a window, and from there to a query by steps of these lengths: the
# cosine of a query and the window that it was made of is 0.55.
_PER_VIDEO, _PER_TOPIC = 8, 20
_TO_VIDEO, _TO_WINDOW, _TO_QUERY = 1.0, 0.7, 1.5
_QUERIES = 100
# Vectors that are made together.
_BLOCK = 2**16


class Measured(NamedTuple):
    """What one process has found: of one query, the seconds by the clock and of all threads.

    Attributes:
      build: until the vectors lie in clusters.
      exact: comparing with all.
      clustered: looking into the nearest clusters.
      recall: share of the true 10 best that this finds.
      nbytes: of the file.
    """

    build: float
    exact: tuple[float, float]
    clustered: tuple[float, float]
    recall: float
    nbytes: int


def benchmark_search(*, vectors: int, width: int, workdir: Path) -> Figures:
    """Makes an index of random vectors and searches it, one query at a time, from its mapped file.

    Args:
      vectors: how many.
      width: of each.
      workdir: where to make a folder for it; it is removed at the end, come what may.

    Raises:
      UsageError: too little room.
      ChildProcessError: a process has died.
    """
    name = f"search/{vectors}x{width}"
    with working_folder(workdir, 4.4 * vectors * width) as folder:
        say(f"{name}: making and clustering vectors, and searching them")
        found = run_apart(measure, folder / "index", vectors, width, threads=THREADS)
    figures = (
        Figure("exact query", 1000 * found.exact[0], "ms", at_most=MAX_EXACT_MS),
        Figure("its CPU time", 1000 * found.exact[1], "ms"),
        Figure("query of clusters", 1000 * found.clustered[0], "ms", at_most=MAX_CLUSTERED_MS),
        Figure("CPU time of that", 1000 * found.clustered[1], "ms"),
        Figure(f"recall@{TOP}", found.recall, at_least=MIN_RECALL),
        Figure("clustering", found.build, "s"),
        Figure("file", found.nbytes / 1e9, "GB"),
    )
    return Figures(name, figures, {"threads": THREADS, "queries": _QUERIES})


def measure(file: Path, count: int, width: int) -> Measured:
    """Builds an index in this process, and searches it."""
    from internvideo_jax.search.index_file import read_index, write_index
    from internvideo_jax.search.nearest import nearest
    from internvideo_jax.search.updating import with_clusters

    index, queries = make_index(count, width)
    start = time.perf_counter()
    clustered = with_clusters(index, least=1)
    build = time.perf_counter() - start
    del index
    write_index(file, clustered)
    del clustered
    mapped = read_index(file)
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    # The first, whose pages come from the disk, does not count.
    for query in [queries[0], *queries]:
        for is_exact in times:
            clusters = None if is_exact else mapped.clusters
            cpu, start = time.process_time(), time.perf_counter()
            (best,) = nearest(mapped.vectors, query[None], TOP, clusters)
            seconds = time.perf_counter() - start
            times[is_exact].append((seconds, time.process_time() - cpu))
            found[is_exact].append(best.rows)
    hits = [np.isin(a, b).mean() for a, b in zip(found[True], found[False], strict=True)]
    exact, clusters_alone = (
        (median(clock), median(cpu))
        for clock, cpu in (zip(*own[1:], strict=True) for own in (times[True], times[False]))
    )
    return Measured(build, exact, clusters_alone, float(np.mean(hits[1:])), file.stat().st_size)


def make_index(count: int, width: int) -> "tuple[Index, np.ndarray]":
    """Windows of random videos, and queries `[Q, D]` that resemble some of them."""
    from internvideo_jax.search.index_file import Index, IndexedFile, IndexSettings

    rng = np.random.default_rng(0)

    def beside(centers: np.ndarray, step: float) -> np.ndarray:
        noise = rng.standard_normal(centers.shape, np.float32)
        moved = centers + step * noise / np.float32(np.sqrt(width))
        return moved / np.linalg.norm(moved, axis=1, keepdims=True)

    num_videos = -(-count // _PER_VIDEO)
    topics = beside(np.zeros((-(-num_videos // _PER_TOPIC), width), np.float32), 1.0)
    videos = beside(topics[rng.integers(len(topics), size=num_videos)], _TO_VIDEO)
    file_of = np.arange(count, dtype=np.int32) // _PER_VIDEO
    vectors = np.empty((count, width), np.float32)
    for start in range(0, count, _BLOCK):
        own = file_of[start : start + _BLOCK]
        vectors[start : start + _BLOCK] = beside(videos[own], _TO_WINDOW)
    queries = beside(vectors[rng.integers(count, size=_QUERIES)], _TO_QUERY)
    starts = 10.0 * (np.arange(count) % _PER_VIDEO)
    settings = IndexSettings("random", "", "float32", 8, 10.0, 10.0)
    files = tuple(IndexedFile(f"/videos/{number}.mp4", 0, 0) for number in range(num_videos))
    times = np.stack([starts, starts + 10], axis=1)
    return Index(settings, files, file_of, times, vectors), queries
