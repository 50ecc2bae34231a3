"""Classification: its evaluator, and its metrics against brute force."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from internvideo_jax.evaluation import runner
from internvideo_jax.evaluation.classification import (
    ClassificationEvaluator,
    average_precision,
    class_table,
    confusion_counts,
    mean_average_precision,
    merge_views,
    top_k_accuracy,
)
from internvideo_jax.models import VideoClassifier, VideoClassifierConfig, VideoViTConfig
from internvideo_jax.preprocessing import VideoPreprocessing

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.35, 0.25]])
LABELS = np.array([1, 1, 2, 2])

# Few values, so that there are many ties.
small_scores = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(1, 5)),
    elements=st.integers(0, 3).map(float),
)


@given(scores=small_scores, seed=st.integers(0, 9))
def test_of_equal_scores_the_first_count(scores, seed):
    labels = np.random.default_rng(seed).integers(0, scores.shape[1], len(scores))
    places = np.argsort(-scores, axis=1, kind="stable")
    for k in range(1, scores.shape[1] + 1):
        hits = (places[:, :k] == labels[:, None]).any(axis=1)
        np.testing.assert_allclose(top_k_accuracy(scores, labels, k), 100 * hits.mean())


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


@dataclasses.dataclass(frozen=True)
class Echo(ClassificationEvaluator):
    """Takes what stands for the clips as logits."""

    def forward(self, variables, batch):
        return batch["video"]


def evaluated(logits, index, label, valid=None):
    count = len(index)
    batch = {
        "video": np.asarray(logits, np.float32),
        "index": np.asarray(index),
        "label": np.asarray(label),
        "segment": np.arange(count),
        "crop": np.zeros(count, int),
        "valid": np.ones(count, bool) if valid is None else np.asarray(valid),
        "error": np.full(count, "no picture"),
    }
    halves = [{name: x[i : i + 4] for name, x in batch.items()} for i in range(0, count, 4)]
    classifier = VideoClassifier(VideoClassifierConfig(VideoViTConfig(16, 1, 2, 16), 3))
    evaluator = Echo(classifier, VideoPreprocessing())
    return runner.evaluate(evaluator, {"x": np.zeros(1)}, halves)


def test_metrics_of_batches():
    logits = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3], [3, 0, 0], [0, 1, 5], [9, 0, 0]])
    index, label = [5, 5, 2, 2, 7, -1], [0, 0, 1, 1, 2, 0]
    values = evaluated(logits, index, label, [True, True, True, True, True, False])
    # Clip 5 ties between 0 and 1, clip 2 between 0 and 2.
    np.testing.assert_allclose(values["top1"], 200 / 3)
    assert "top5" not in values
    np.testing.assert_allclose(values["mean_class_accuracy"], 200 / 3)
    assert (values["clips"], values["failed"]) == (3, 0)
    assert all(type(value) is float for value in values.values())


def test_the_best_five_count_where_there_are_more_classes():
    values = evaluated(-np.arange(6.0)[None].repeat(2, axis=0), [0, 1], [4, 5])
    assert (values["top1"], values["top5"]) == (0, 50)


def test_clips_with_an_unreadable_view_are_left_out_and_counted():
    logits = [[3, 0], [3, 0], [0, 3], [0, 3]]
    values = evaluated(logits, [0, 0, 1, 1], [0, 0, 0, 0], [True, True, True, False])
    assert (values["top1"], values["clips"], values["failed"]) == (100, 1, 1)


def test_multi_label_data_have_mean_average_precision_alone():
    labels = np.array([[1, 1, 0], [0, 1, 0]], np.float32)
    values = evaluated([[2, 1, 0], [0, 1, 0]], [0, 1], labels)
    assert set(values) == {"mAP", "clips", "failed"}
    np.testing.assert_allclose(values["mAP"], 100)


@pytest.mark.parametrize(
    ("logits", "valid", "message"),
    [
        ([], [], "at least one batch"),
        ([[1, 2]], [False], "could be read, found none"),
        ([[np.nan, 2]], [True], "found NaN for clip 0"),
    ],
)
def test_nothing_to_measure(logits, valid, message):
    with pytest.raises(ValueError, match=message):
        evaluated(logits, [0] * len(logits), [0] * len(logits), valid)


def test_probabilities_are_averaged_and_not_logits():
    logits = np.array([[4, 0, 0], [0, 0, 2], [0, 1, 0], [1000, -1000, 0]], np.float32)
    merged = merge_views(np.array([2, 2, 5, 5]), logits)
    each = np.exp(logits - logits.max(1, keepdims=True).astype(np.float64))
    each /= each.sum(1, keepdims=True)
    np.testing.assert_allclose(merged, [each[:2].mean(0), each[2:].mean(0)], rtol=1e-6)
    assert merged.dtype == np.float32


def test_only_classifiers_of_as_many_classes_classify(encoder, classifier):
    evaluator = ClassificationEvaluator(classifier.module, classifier.preprocessing.video)
    assert evaluator.with_model(classifier) == evaluator
    with pytest.raises(ValueError, match="expected a video classifier, found VideoViT"):
        evaluator.with_model(encoder)
    config = dataclasses.replace(classifier.config, num_classes=4)
    other = dataclasses.replace(classifier, module=VideoClassifier(config))
    with pytest.raises(ValueError, match="expected a model of 3 classes, found 4"):
        evaluator.with_model(other)
