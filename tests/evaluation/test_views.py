"""Merging of views."""

import numpy as np
import pytest

from internvideo_jax.evaluation.views import merge_views


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(np.asarray(logits, np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_probabilities_are_averaged_and_not_logits():
    logits = np.array([[4.0, 0, 0], [0, 1, 0], [0, 0, 2], [1, 1, 1]])
    merged = merge_views(["b", "a", "b", "a"], logits, [0, 0, 1, 0], [0, 0, 0, 1])
    assert merged.ids == ("b", "a")
    expected = [softmax(logits[[0, 2]]).mean(0), softmax(logits[[1, 3]]).mean(0)]
    np.testing.assert_allclose(merged.probabilities, expected, rtol=1e-6)
    assert merged.probabilities.dtype == np.float32
    assert merged.num_views.tolist() == [2, 2]


def test_repeated_views_count_once_whatever_their_order():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (12, 5))
    ids, segments, crops = np.arange(12) // 6, np.arange(12) // 3 % 2, np.arange(12) % 3
    expected = merge_views(ids.tolist(), logits, segments, crops)
    assert expected.num_views.tolist() == [6, 6]
    order = np.concatenate([rng.permutation(12), [3, 3, 7, 0]])
    merged = merge_views(ids[order].tolist(), logits[order], segments[order], crops[order])
    back = np.argsort(merged.ids)
    np.testing.assert_allclose(merged.probabilities[back], expected.probabilities, rtol=1e-6)
    assert merged.num_views.tolist() == [6, 6]


def test_crops_1_of_segment_11_are_not_segments_1_of_crop_11():
    # Upstream joins the two numbers to one text.
    merged = merge_views(["a", "a"], np.eye(2), [1, 11], [11, 1])
    assert merged.num_views.tolist() == [2]


def test_large_logits_do_not_overflow():
    merged = merge_views([0, 1], np.array([[1000.0, 0], [-1000, 1000]]), [0, 0], [0, 0])
    np.testing.assert_array_equal(merged.probabilities, [[1, 0], [0, 1]])


def test_no_views_give_no_clips():
    merged = merge_views([], np.zeros((0, 3)), [], [])
    assert merged.ids == ()
    assert merged.probabilities.shape == (0, 3)


def test_nan_is_refused_by_clip():
    with pytest.raises(ValueError, match="found NaN for clip 'b'"):
        merge_views(["a", "b"], np.array([[1.0, 2], [np.nan, 1]]), [0, 0], [0, 0])


def test_columns_must_fit():
    with pytest.raises(ValueError, match=r"found 2 ids, logits of shape \(3, 2\), 2 segments"):
        merge_views(["a", "b"], np.zeros((3, 2)), [0, 0], [0, 0])
