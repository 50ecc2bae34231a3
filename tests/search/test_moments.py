"""Moments of videos: what overlaps or follows directly is one."""

import dataclasses

import numpy as np
import pytest

from internvideo_jax.search.moments import find_moments
from tests.search.indices import random_index, random_vectors


def ranked_index(scores, times, file_of):
    """Windows whose cosines with the first axis are the `scores`."""
    scores = np.array(scores, np.float32)
    vectors = np.stack([scores, np.sqrt(1 - scores**2)], axis=1)
    index = random_index(len(scores), per_file=1)
    return dataclasses.replace(
        index, vectors=vectors, times=np.array(times, float), file_of=np.array(file_of, np.int32)
    )


QUERY = np.array([[1, 0]], np.float32)


def test_of_neighbouring_windows_only_the_best_counts():
    times = [(0, 2), (1, 3), (2, 4), (4, 6), (6.1, 8), (0, 2)]
    index = ranked_index([0.5, 0.9, 0.8, 0.7, 0.6, 0.4], times, [0, 0, 0, 0, 0, 1])
    (moments,) = find_moments(index, QUERY, 10)
    assert [(m.path, m.start, m.end) for m in moments] == [
        ("/videos/0.mp4", 1, 3), ("/videos/0.mp4", 4, 6), ("/videos/0.mp4", 6.1, 8),
        ("/videos/1.mp4", 0, 2),
    ]  # fmt: skip
    assert moments[0].score == pytest.approx(0.9)
    assert find_moments(index, QUERY, 2) == [moments[:2]]


def test_sums_of_times_that_touch_are_neighbours():
    third = 0.1 + 0.2
    index = ranked_index([0.9, 0.8], [(third, 0.6), (0.0, 0.3)], [0, 0])
    assert third > 0.3
    assert len(find_moments(index, QUERY, 5)[0]) == 1


def test_many_windows_of_one_scene_do_not_crowd_out_the_others():
    # A hundred windows of one moment, all better than the other.
    scores = [*np.linspace(0.99, 0.9, 100), 0.1]
    index = ranked_index(scores, [(0, 2)] * 101, [0] * 100 + [1])
    (moments,) = find_moments(index, QUERY, 2)
    assert [m.path for m in moments] == ["/videos/0.mp4", "/videos/1.mp4"]


def test_several_queries_and_another_width():
    index = random_index(30)
    queries = random_vectors(3, seed=1)
    found = find_moments(index, queries, 4)
    for query, moments in zip(queries, found, strict=True):
        assert find_moments(index, query[None], 4) == [moments]
        assert moments[0].score == pytest.approx((index.vectors @ query).max(), abs=1e-6)
    with pytest.raises(ValueError, match="queries of width 8, .* found 7"):
        find_moments(index, queries[:, 1:], 4)
