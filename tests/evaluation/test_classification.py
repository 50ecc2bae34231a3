"""Metrics of classification, against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from internvideo_jax.evaluation.classification import (
    average_precision,
    class_table,
    confusion_counts,
    label_ranks,
    mean_average_precision,
    top_k_accuracy,
)

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.35, 0.25]])
LABELS = np.array([1, 1, 2, 2])

# Few values, so that there are many ties.
small_scores = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(1, 5)),
    elements=st.integers(0, 3).map(float),
)


def test_top_k():
    assert top_k_accuracy(SCORES, LABELS, 1) == 50
    assert top_k_accuracy(SCORES, LABELS, 2) == 75
    assert top_k_accuracy(SCORES, LABELS, 3) == 100
    assert top_k_accuracy(SCORES, LABELS, 5) == 100


@given(scores=small_scores, seed=st.integers(0, 9))
def test_ranks_are_places_in_a_stable_order(scores, seed):
    labels = np.random.default_rng(seed).integers(0, scores.shape[1], len(scores))
    ranks = label_ranks(scores, labels)
    for row, label, rank in zip(scores, labels, ranks, strict=True):
        assert np.argsort(-row, kind="stable").tolist().index(label) == rank


def test_confusion():
    counts = confusion_counts(LABELS, SCORES.argmax(1), 3)
    assert counts.tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 1]]


def brute_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """The sum over thresholds of (gain in recall) * precision."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        retrieved = scores >= threshold
        hits = (retrieved & targets).sum()
        total += (hits / targets.sum() - recall) * hits / retrieved.sum()
        recall = hits / targets.sum()
    return total


@given(scores=small_scores, seed=st.integers(0, 9))
def test_average_precision_is_the_area_under_the_steps(scores, seed):
    targets = np.random.default_rng(seed).random(scores.shape) < 0.4
    ours = average_precision(scores, targets)
    for number, positives in enumerate(targets.sum(axis=0)):
        if positives:
            expected = brute_average_precision(scores[:, number], targets[:, number])
            np.testing.assert_allclose(ours[number], expected, rtol=1e-12)
        else:
            assert np.isnan(ours[number])
    order = np.random.default_rng(seed).permutation(len(scores))
    np.testing.assert_allclose(average_precision(scores[order], targets[order]), ours, rtol=1e-12)


def test_mean_average_precision_leaves_out_classes_without_clips():
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0]])
    # Class 0: hits at places 1 and 4; class 1: the first three but one, at 2, 3 (a tie) and 4.
    scores = np.array([[0.1, 0.9, 0], [0.5, 0.3, 0], [0.2, 0.3, 0], [0.4, 0.2, 0]])
    first = (1 / 1 + 2 / 4) / 2
    second = (2 * 2 / 3 + 3 / 4) / 3
    np.testing.assert_allclose(mean_average_precision(scores, targets), 50 * (first + second))
    with pytest.raises(ValueError, match="at least one clip with a class"):
        mean_average_precision(scores, targets * 0)


def test_the_class_table():
    targets = np.eye(3, dtype=bool)[LABELS]
    rows = class_table(SCORES, targets, ["a", "b", "c"])
    assert [row.name for row in rows] == ["a", "b", "c"]
    assert [(row.clips, row.predicted, row.correct) for row in rows] == [
        (0, 2, 0),
        (2, 1, 1),
        (2, 1, 1),
    ]
    assert [row.accuracy for row in rows] == [None, 50, 50]
    assert rows[0].average_precision is None
    np.testing.assert_allclose(rows[2].average_precision, 100)
    # Places 1 and 3 to 4, where two clips have equal scores.
    np.testing.assert_allclose(rows[1].average_precision, 100 * (1 + 2 / 4) / 2)
    assert class_table(SCORES, targets)[1].name == "1"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_k_accuracy(SCORES, LABELS[:2], 1), r"shapes \(4, 3\) and \(2,\)"),
        (lambda: top_k_accuracy(SCORES[:0], LABELS[:0], 1), "at least one clip"),
        (lambda: top_k_accuracy(SCORES, LABELS + 1, 1), "labels from 0 to 2, found 2 to 3"),
        (lambda: average_precision(SCORES, LABELS), "scores and targets"),
        (lambda: class_table(SCORES, np.ones((4, 3)), ["a"]), "names of 3 classes, found 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
