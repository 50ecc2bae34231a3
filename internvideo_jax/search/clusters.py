"""Vectors in clusters, so that a query need not be compared with all of them.

This is an inverted file: a query looks into the clusters whose centres are nearest to it. A graph
(HNSW) would take fewer comparisons; but libraries that have one follow what a file says of its
edges, where these are two plain arrays that can be checked.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

# Of clusters, for the square root of the number of vectors.
_PER_ROOT = 4
# Vectors of a cluster that its centre is found with, and rounds of that.
_SAMPLE, _ROUNDS = 64, 10
# Vectors that are compared with all centres together.
_BLOCK = 2**14


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """How an index's vectors lie together: those of a cluster follow each other.

    Attributes:
      centers: float32 `[K, D]`, of length 1.
      starts: number of the first vector of each cluster, and that of all, int64 `[K + 1]`.
      made_of: how many vectors there were when the centres were found.

    Raises:
      ValueError: they are not like that.
    """

    centers: Float[np.ndarray, "K D"]
    starts: Int[np.ndarray, " K+1"]
    made_of: int

    def __post_init__(self) -> None:
        if len(self.starts) != len(self.centers) + 1 or len(self.centers) < 1:
            raise ValueError(
                f"expected a start for each of {len(self.centers)} clusters and an end, found"
                f" {len(self.starts)}"
            )
        if self.starts[0] != 0 or (self.starts[1:] < self.starts[:-1]).any():
            raise ValueError("expected clusters from 0 on, one after the other, found others")
        if not np.isfinite(self.centers).all():
            raise ValueError("expected finite centres of clusters, found others")


def find_centers(vectors: Float[np.ndarray, "N D"], seed: int = 0) -> Float[np.ndarray, "K D"]:
    """Centres of clusters of vectors of length 1, by k-means over a sample, float32 of length 1.

    Args:
      vectors: float32; there are four times the square root of their number of centres.
      seed: of the sample and of the first centres.
    """
    import faiss

    count = min(max(round(_PER_ROOT * math.sqrt(len(vectors))), 1), len(vectors))
    rng = np.random.default_rng(seed)
    size = min(_SAMPLE * count, len(vectors))
    # In order, as they lie on a disk.
    sample = np.sort(rng.choice(len(vectors), size, replace=False))
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=_ROUNDS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=_SAMPLE,
    )
    kmeans.train(np.ascontiguousarray(vectors[sample]))
    return np.asarray(kmeans.centroids, np.float32)


def nearest_centers(
    vectors: Float[np.ndarray, "N D"], centers: Float[np.ndarray, "K D"]
) -> Int[np.ndarray, " N"]:
    """The number of the centre that is nearest to each vector, int64."""
    import faiss

    found = [
        faiss.knn(np.ascontiguousarray(block), centers, 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
        for block in (vectors[n : n + _BLOCK] for n in range(0, len(vectors), _BLOCK))
    ]
    return np.concatenate(found)[:, 0] if found else np.empty(0, np.int64)


def starts_of(numbers: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " K+1"]:
    """Where each of `count` clusters begins, in vectors sorted by their clusters' `numbers`."""
    return np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=count))])
