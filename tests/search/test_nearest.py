"""What is nearest to a query, among all vectors and in clusters."""

import dataclasses

import numpy as np
import pytest

from internvideo_jax.search.clusters import starts_of
from internvideo_jax.search.nearest import nearest
from internvideo_jax.search.updating import with_clusters
from tests.search.indices import random_index, random_vectors


def test_all_vectors_are_compared_and_the_best_come_first():
    vectors, queries = random_vectors(50), random_vectors(3, seed=1)
    expected = queries @ vectors.T
    for query, found in zip(expected, nearest(vectors, queries, 4), strict=True):
        assert found.rows.tolist() == np.argsort(-query)[:4].tolist()
        np.testing.assert_allclose(found.scores, np.sort(query)[::-1][:4], atol=1e-6)
    (everything,) = nearest(vectors, queries[:1], 80)
    assert sorted(everything.rows.tolist()) == list(range(50))


def test_equal_scores_keep_their_order():
    vectors = np.repeat(random_vectors(2), 5, axis=0)
    (found,) = nearest(vectors, vectors[:1], 3)
    assert found.rows.tolist() == [0, 1, 2]


def test_the_nearest_clusters_hold_most_of_the_best():
    index = with_clusters(random_index(2000), least=1)
    original = random_index(2000)
    assert len(index.clusters.centers) == round(4 * 2000**0.5)
    assert with_clusters(index, least=1) is index
    # The same windows, sorted.
    order = np.lexsort(original.vectors.T)
    again = np.lexsort(index.vectors.T)
    np.testing.assert_array_equal(index.vectors[again], original.vectors[order])
    np.testing.assert_array_equal(index.file_of[again], original.file_of[order])
    np.testing.assert_array_equal(index.times[again], original.times[order])
    queries = random_vectors(20, seed=1)
    exact = nearest(index.vectors, queries, 5)
    some = nearest(index.vectors, queries, 5, index.clusters)
    hits = [np.isin(a.rows, b.rows).mean() for a, b in zip(exact, some, strict=True)]
    # Of random vectors, which do not lie in clusters at all, 1 % of them.
    assert np.mean(hits) > 0.3
    everything = nearest(index.vectors, queries, 2000, index.clusters)
    np.testing.assert_array_equal(everything[0].rows[:5], exact[0].rows)


def test_clusters_may_be_empty():
    assert starts_of(np.array([0, 0, 3]), 5).tolist() == [0, 2, 2, 2, 3, 3]


def test_vectors_of_other_lengths_are_damage():
    for factor in (2, np.nan):
        index = random_index(20)
        vectors = index.vectors.copy()
        vectors[7] *= factor
        index = dataclasses.replace(index, vectors=vectors)
        with pytest.raises(ValueError, match="length 1 in the index.* damaged"):
            nearest(vectors, index.vectors[7:8] / factor, 3)
