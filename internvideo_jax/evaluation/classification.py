"""Classification: its evaluator, and metrics as pure functions of scores and labels.

Accuracies are percentages.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from internvideo_jax.evaluation.runner import Evaluator, PyTree, Rows
from internvideo_jax.models import VideoClassifier
from internvideo_jax.preprocessing import VideoPreprocessing, normalize

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.saved_model import SavedModel


@dataclasses.dataclass(frozen=True)
class ClassificationEvaluator(Evaluator):
    """How well a classifier knows the labels of clips, by probabilities averaged over their views.

    Attributes:
      module: the classifier.
      preprocessing: of its clips.
    """

    task: ClassVar[str] = "classification"
    merging: ClassVar[str] = "mean of the softmax of each view"
    references: ClassVar[tuple[str, ...]] = ("label",)

    module: nn.Module
    preprocessing: VideoPreprocessing

    def __post_init__(self) -> None:
        if not isinstance(self.module, VideoClassifier):
            raise ValueError(
                f"expected a video classifier, found {type(self.module).__name__}; an encoder"
                " becomes one by training with configs/stage1/finetune.py or probe.py"
            )

    def with_model(self, model: "SavedModel") -> "ClassificationEvaluator":
        other = ClassificationEvaluator(model.module, model.preprocessing.require_video())
        found, wanted = (e.module.config.num_classes for e in (other, self))
        if found != wanted:
            raise ValueError(
                f"expected a model of {wanted} classes, found {found}; name the config that it was"
                " trained with"
            )
        return other

    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Logits `[B, C]` of uint8 views `[B, T, H, W, 3]`."""
        output: Any = self.module.apply(variables, normalize(batch["video"], self.preprocessing))
        return output.logits

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Those of `classification_metrics`."""
        predictions = Predictions.of(rows)
        return classification_metrics(predictions.probabilities, predictions.labels)

    def report(
        self, rows: Rows, clips: "Sequence[ClipRecord]", names: Sequence[str], directory: Path
    ) -> str:
        """That of `classification_report.write_report`."""
        from internvideo_jax.evaluation.classification_report import write_report

        return write_report(directory, rows, clips, names)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of clips, merged over their views.

    Attributes:
      index: numbers of the clips in their data set, int64 `[N]`, ascending.
      probabilities: float32 `[N, C]`.
      labels: int `[N]`, or multi-hot `[N, C]`.
    """

    index: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> "Predictions":
        """Merges the logits of views; errors as `merge_views`."""
        index, first = np.unique(rows.columns["index"], return_index=True)
        probabilities = merge_views(rows.columns["index"], rows.output)
        return cls(index, probabilities, rows.columns["label"][first])


def merge_views(clips: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Turns logits of views into probabilities (softmax) and averages those of the same clip.

    Args:
      clips: number of each view's clip `[V]`, ascending. Upstream takes file names without folder,
        and merges clips of one name.
      logits: `[V, C]`, each view once (`runner.distinct_views`).

    Returns:
      float32 `[N, C]`, by ascending number.

    Raises:
      ValueError: logits are NaN.

    Source: upstream's `single_modality/engines/engine_for_finetuning.py`, `merge`.
    """
    bad = np.isnan(logits).any(axis=1)
    if bad.any():
        raise ValueError(f"expected logits that are numbers, found NaN for clip {clips[bad][0]}")
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    _, first, counts = np.unique(clips, return_index=True, return_counts=True)
    sums = np.add.reduceat(probabilities, first, axis=0, dtype=np.float64)
    return (sums / counts[:, None]).astype(np.float32)


def classification_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Percentages: "top1", "top5", "mean_class_accuracy" (one label per clip) and "mAP".

    There is no "top5" of five or fewer classes: it would be 100, whatever the model.

    Args:
      probabilities: `[N, C]`.
      labels: classes `[N]`, or multi-hot `[N, C]`, for which there is "mAP" alone.

    Raises:
      ValueError: no clips.
    """
    if not len(probabilities):
        raise ValueError("expected at least one clip that could be read, found none")
    num_classes = probabilities.shape[1]
    values = {"mAP": mean_average_precision(probabilities, multi_hot(labels, num_classes))}
    if labels.ndim == 2:
        return values
    counts = confusion_counts(labels, probabilities.argmax(axis=1), num_classes)
    clips = counts.sum(axis=1)
    recalls = counts.diagonal()[clips > 0] / clips[clips > 0]
    ranks = (1, 5) if num_classes > 5 else (1,)
    return {
        **{f"top{k}": top_k_accuracy(probabilities, labels, k) for k in ranks},
        "mean_class_accuracy": float(100 * recalls.mean()),
        **values,
    }


def multi_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Classes `[N]` or multi-hot `[N, C]` as bool `[N, C]`."""
    labels = np.asarray(labels)
    return labels != 0 if labels.ndim == 2 else np.eye(num_classes, dtype=bool)[labels]


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
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    ranks = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return float(100 * (ranks < k).mean())


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
      accuracy: percentage of its clips whose best score it is; None without clips.
      average_precision: percentage; None where no clip has it.
    """

    index: int
    name: str
    clips: int
    predicted: int
    correct: int
    accuracy: float | None
    average_precision: float | None


def class_table(scores: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> list[ClassRow]:
    """Counts and average precision of every class.

    Args:
      scores: `[N, C]`.
      targets: `[N, C]`, nonzero where a clip has the class.
      names: of the classes.

    Raises:
      ValueError: different shapes, or another number of names.
    """
    precisions = average_precision(scores, targets)
    num_classes = len(precisions)
    if len(names) != num_classes:
        raise ValueError(f"expected names of {num_classes} classes, found {len(names)}")
    has = np.asarray(targets) != 0
    best = np.eye(num_classes, dtype=bool)[np.argmax(scores, axis=1)]
    counts = (x.sum(axis=0).tolist() for x in (has, best, best & has))
    return [
        ClassRow(
            index,
            name,
            clips,
            predicted,
            correct,
            accuracy=100 * correct / clips if clips else None,
            average_precision=float(100 * precisions[index]) if clips else None,
        )
        for index, (name, clips, predicted, correct) in enumerate(zip(names, *counts, strict=True))
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
