"""Metrics of classification, as pure functions of scores and labels. Accuracies are percentages."""

import dataclasses
from collections.abc import Sequence

import numpy as np


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Percentage of clips whose label is among the k best scores; of equal ones the first count.

    Args:
      scores: `[N, C]`, N at least 1; any order-preserving transform of the probabilities serves.
      labels: class of each clip `[N]`.
      k: how many; more than C counts as C.

    Raises:
      ValueError: no clips, or labels that do not fit the scores.
    """
    labels = _checked_labels(scores, labels)
    return float(100 * (label_ranks(scores, labels) < k).mean())


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of each clip's label among the scores `[N, C]`, from 0; int64 `[N]`."""
    labels = _checked_labels(scores, labels)
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def confusion_counts(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """How often clips of class i (row) were taken for class j (column), int64 `[C, C]`."""
    pairs = np.asarray(labels, np.int64) * num_classes + np.asarray(predictions, np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class: the area under its precision-recall steps.

    Clips with equal scores are retrieved together, so that their order does not matter.

    Args:
      scores: `[N, C]`.
      targets: `[N, C]`, nonzero where a clip has the class.

    Returns:
      float64 `[C]` in [0, 1]; NaN for classes without clips.

    Raises:
      ValueError: different shapes.
    """
    scores, targets = np.asarray(scores), np.asarray(targets) != 0
    if scores.shape != targets.shape or scores.ndim != 2:
        raise ValueError(
            f"expected scores and targets [N, C], found {scores.shape} and {targets.shape}"
        )
    pairs = zip(scores.T, targets.T, strict=True)
    return np.array([_average_precision(s, t) for s, t in pairs])


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of `average_precision` over the classes that have clips, as a percentage.

    Raises:
      ValueError: different shapes, or no class has a clip.
    """
    precisions = average_precision(scores, targets)
    if np.isnan(precisions).all():
        raise ValueError("expected at least one clip with a class, found none")
    return float(100 * np.nanmean(precisions))


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """One class in a per-class table.

    Attributes:
      index: its number.
      name: its name.
      clips: clips that have it.
      predicted: clips whose best score it is.
      correct: clips of both kinds.
      average_precision: percentage; None where no clip has it.
    """

    index: int
    name: str
    clips: int
    predicted: int
    correct: int
    average_precision: float | None

    @property
    def accuracy(self) -> float | None:
        """Percentage of its clips whose best score it is; None without clips."""
        return 100 * self.correct / self.clips if self.clips else None


def class_table(
    scores: np.ndarray, targets: np.ndarray, names: Sequence[str] | None = None
) -> list[ClassRow]:
    """Counts and average precision of every class.

    Args:
      scores: `[N, C]`.
      targets: `[N, C]`, nonzero where a clip has the class.
      names: of the classes; by default their numbers.

    Raises:
      ValueError: different shapes, or another number of names.
    """
    precisions = average_precision(scores, targets)
    num_classes = len(precisions)
    names = [str(i) for i in range(num_classes)] if names is None else names
    if len(names) != num_classes:
        raise ValueError(f"expected names of {num_classes} classes, found {len(names)}")
    has = np.asarray(targets) != 0
    best = np.eye(num_classes, dtype=bool)[np.argmax(scores, axis=1)]
    return [
        ClassRow(
            index=i,
            name=names[i],
            clips=int(has[:, i].sum()),
            predicted=int(best[:, i].sum()),
            correct=int((best & has)[:, i].sum()),
            average_precision=None if np.isnan(precisions[i]) else float(100 * precisions[i]),
        )
        for i in range(num_classes)
    ]


def _average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    positives = targets.sum()
    if not positives:
        return np.nan
    order = np.argsort(-scores, kind="stable")
    last_of_equal = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(targets[order])[last_of_equal]
    precision = hits / (np.flatnonzero(last_of_equal) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / positives)


def _checked_labels(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if scores.ndim != 2 or not len(scores) or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"expected scores [N, C] of at least one clip and labels [N], found shapes"
            f" {scores.shape} and {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(
            f"expected labels from 0 to {scores.shape[1] - 1}, found {labels.min()} to"
            f" {labels.max()}"
        )
    return labels
