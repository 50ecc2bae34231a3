"""What a query has found: moments of videos, each once."""

from typing import NamedTuple

import numpy as np

from internvideo_jax.search.index_file import Index
from internvideo_jax.search.nearest import Nearest, nearest

# Windows that are looked at for each moment that is wanted, at first, and how their number grows
# where too many of them show the same.
_FACTOR, _GROWTH = 8, 8
# Seconds: times are sums.
_TOLERANCE = 1e-6


class Moment(NamedTuple):
    """A part of a video.

    Attributes:
      path: of the video.
      start: seconds after the file's start.
      end: likewise.
      score: cosine of its embedding and the query's.
    """

    path: str
    start: float
    end: float
    score: float


def find_moments(
    index: Index, queries: np.ndarray, top: int, *, is_exact: bool = False
) -> list[list[Moment]]:
    """The best moments for each query, the best first.

    Of windows of one video that overlap or follow each other directly, only the best counts.

    Args:
      index: what is searched.
      queries: float32 `[Q, D]`, of length 1.
      top: how many moments; fewer if there are no more.
      is_exact: whether all windows are compared although they lie in clusters.

    Raises:
      ValueError: the index is damaged, or of vectors of another width.
    """
    if queries.shape[1] != index.vectors.shape[1]:
        raise ValueError(
            f"expected queries of width {index.vectors.shape[1]}, as the index has, found"
            f" {queries.shape[1]}; take the model that it was made with"
        )
    clusters = None if is_exact else index.clusters
    moments: list[list[Moment]] = []
    for query in queries:
        count = _FACTOR * top
        while True:
            (found,) = nearest(index.vectors, query[None], count, clusters)
            own = distinct(index, found, top)
            if len(own) == top or len(found.rows) < count:
                break
            count *= _GROWTH
        moments.append(own)
    return moments


def distinct(index: Index, found: Nearest, top: int) -> list[Moment]:
    """The best of the windows that were found, without those beside better ones.

    Args:
      index: whose they are.
      found: windows, the best first.
      top: how many at most.
    """
    moments: list[Moment] = []
    taken: dict[int, list[tuple[float, float]]] = {}
    for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
        number = int(index.file_of[row])
        start, end = index.times[row].tolist()
        before = taken.setdefault(number, [])
        if any(start - _TOLERANCE < then and when < end + _TOLERANCE for when, then in before):
            continue
        before.append((start, end))
        moments.append(Moment(index.files[number].path, start, end, score))
        if len(moments) == top:
            break
    return moments
