"""The vectors of an index that are nearest to queries."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from internvideo_jax.search.clusters import Clusters

# Share of all vectors that a query is compared with where there are clusters.
_SHARE = 0.01
# Cosines of vectors of length 1, but for rounding.
_MAX_COSINE = 1.01


class Nearest(NamedTuple):
    """The best vectors for a query.

    Attributes:
      rows: their numbers, the best first, int64 `[K]`.
      scores: cosines, float32 `[K]`.
    """

    rows: Int[np.ndarray, " K"]
    scores: Float[np.ndarray, " K"]


def nearest(
    vectors: Float[np.ndarray, "N D"],
    queries: Float[np.ndarray, "Q D"],
    count: int,
    clusters: Clusters | None = None,
) -> list[Nearest]:
    """The `count` best vectors for each query, or all if there are fewer.

    Args:
      vectors: float32 of length 1; they may be mapped from a disk.
      queries: likewise.
      count: how many.
      clusters: looks only into those whose centres are nearest, 1 % of the vectors; None compares
        all.

    Raises:
      ValueError: vectors are not of length 1, as in a damaged file.
    """
    found = []
    # One by one: NumPy takes several times as long for products with a matrix of few columns.
    for query in np.ascontiguousarray(queries, np.float32):
        if clusters is None:
            found.append(_best(vectors @ query, None, count))
        else:
            rows, scores = _scores_in_clusters(vectors, query, count, clusters)
            found.append(_best(scores, rows, count))
    return found


def _scores_in_clusters(
    vectors: Float[np.ndarray, "N D"],
    query: Float[np.ndarray, " D"],
    count: int,
    clusters: Clusters,
) -> tuple[Int[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Numbers and cosines of the vectors in the nearest clusters."""
    # Unlike matrix products, which for so few rows would wait for threads longer than they compute.
    order = np.argsort(-np.vecdot(clusters.centers, query), kind="stable")
    sizes = np.diff(clusters.starts)[order]
    wanted = max(_SHARE * len(vectors), count)
    order = order[: int(np.searchsorted(np.cumsum(sizes), wanted)) + 1]
    # As they lie on a disk.
    spans = [(int(clusters.starts[n]), int(clusters.starts[n + 1])) for n in np.sort(order)]
    rows = np.concatenate([np.arange(start, end) for start, end in spans])
    return rows, np.concatenate([np.vecdot(vectors[start:end], query) for start, end in spans])


def _best(
    scores: Float[np.ndarray, " M"], rows: Int[np.ndarray, " M"] | None, count: int
) -> Nearest:
    """The best of them; of equal ones, the first."""
    if not (np.abs(scores) <= _MAX_COSINE).all():
        raise ValueError(
            "expected vectors of length 1 in the index, found others: its file is damaged; remove"
            " it and make it anew with `internvideo-jax index`"
        )
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= least)
    else:
        candidates = np.arange(len(scores))
    best = candidates[np.argsort(-scores[candidates], kind="stable")[:count]]
    return Nearest(best if rows is None else rows[best], scores[best])
