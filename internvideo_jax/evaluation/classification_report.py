"""Results of classification as text, tables and a picture, as `internvideo-jax evaluate` does."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.evaluation.classification import (
    ClassRow,
    Predictions,
    class_table,
    classification_metrics,
    confusion_counts,
    multi_hot,
)
from internvideo_jax.evaluation.figures.confusion import MAX_CLASSES, confusion_figure
from internvideo_jax.evaluation.figures.files import save_figure
from internvideo_jax.evaluation.runner import Rows

# All classes up to this many are printed, of more only the worst; per_class.csv has all.
MAX_SHOWN_CLASSES = 20
NUM_WORST_CLASSES = 10


def write_report(
    directory: Path,
    rows: Rows,
    clips: Sequence[ClipRecord],
    names: Sequence[str],
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Writes per_class.csv, predictions.jsonl and, with one label per clip, confusion.png.

    Args:
      directory: where to.
      rows: whose output are logits of each view, or of each clip.
      clips: that were measured, in their order.
      names: of the classes.
      metrics: of the rows; None stands for those of `classification_metrics`.

    Returns:
      The metrics and the classes, or the worst of them, as a table to read.
    """
    predictions = Predictions.of(rows)
    probabilities, labels = predictions.probabilities, predictions.labels
    table = class_table(probabilities, multi_hot(labels, len(names)), names)
    frames = None
    if "frame_indices" in rows.columns:
        frames = rows.columns["frame_indices"][rows.columns["crop"] == 0]
        frames = frames.reshape(len(clips), -1, frames.shape[-1])
    write_predictions(directory / "predictions.jsonl", clips, probabilities, frames)
    write_table(directory / "per_class.csv", table)
    if labels.ndim == 1 and len(names) <= MAX_CLASSES:
        counts = confusion_counts(labels, probabilities.argmax(axis=1), len(names))
        save_figure(confusion_figure(counts, names), directory / "confusion.png")
    metrics = metrics or classification_metrics(probabilities, labels)
    return format_result(metrics, table, len(clips), len(rows.errors))


def format_result(
    metrics: Mapping[str, float], rows: Sequence[ClassRow], num_clips: int, num_failed: int
) -> str:
    """The metrics and the classes, or the worst of them, as a table to read."""
    width = max(map(len, metrics))
    lines = [f"{name:{width}}  {value:6.2f} %" for name, value in metrics.items()]
    lines.append(f"{'clips':{width}}  {num_clips}" + (f" ({num_failed} failed)" * bool(num_failed)))
    shown = [row for row in rows if row.clips]
    title = "class"
    if len(shown) > MAX_SHOWN_CLASSES:
        shown = sorted(shown, key=lambda row: row.average_precision or 0)[:NUM_WORST_CLASSES]
        title = f"worst {NUM_WORST_CLASSES} of {len(rows)} classes"
    width = max(len(title), *(len(row.name) for row in shown))
    lines += ["", f"{title:{width}}  clips  accuracy      AP"]
    lines += [
        f"{row.name:{width}}  {row.clips:5}  {row.accuracy:7.2f}%  {row.average_precision:5.1f}%"
        for row in shown
    ]
    return "\n".join(lines)


def write_table(path: Path, rows: Iterable[ClassRow]) -> None:
    """Writes the per-class table as CSV; percentages are empty for classes without clips."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in dataclasses.fields(ClassRow))
        writer.writerows(map(dataclasses.astuple, rows))


def write_predictions(
    path: Path,
    clips: Sequence[ClipRecord],
    probabilities: np.ndarray,
    frames: np.ndarray | None,
) -> None:
    """Writes a line for each clip.

    Args:
      path: the file.
      clips: that were measured.
      probabilities: of their classes `[N, C]`.
      frames: that the model saw, by segment, `[N, S, T]`; None where nobody has kept them.
    """
    with path.open("w", encoding="utf-8") as file:
        for number, (clip, scores) in enumerate(zip(clips, probabilities, strict=True)):
            best = np.argsort(-scores, kind="stable")[:5]
            line = {
                "id": clip.id,
                "label": clip.label,
                "best": [[int(i), round(float(scores[i]), 6)] for i in best],
            }
            if frames is not None:
                line["frames"] = frames[number].tolist()
            file.write(json.dumps(line) + "\n")
