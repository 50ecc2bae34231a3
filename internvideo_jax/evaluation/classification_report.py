"""Results of classification as text and tables, as `internvideo-jax evaluate` gives them."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.evaluation.classification import ClassRow
from internvideo_jax.evaluation.classification_run import Predictions

# All classes up to this many are printed, of more only the worst; per_class.csv has all.
MAX_SHOWN_CLASSES = 20
NUM_WORST_CLASSES = 10


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
    columns = ("index", "name", "clips", "predicted", "correct", "accuracy", "average_precision")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(row, column) for column in columns] for row in rows)


def write_predictions(
    path: Path,
    records: Sequence[ClipRecord],
    predictions: Predictions,
    frames: Mapping[int, list[list[int]]],
) -> None:
    """Writes a line for each clip, in the order of the annotations."""
    with path.open("w", encoding="utf-8") as file:
        for index, probabilities in zip(
            predictions.index.tolist(), predictions.probabilities, strict=True
        ):
            best = np.argsort(-probabilities, kind="stable")[:5]
            line = {
                "id": records[index].id,
                "label": records[index].label,
                "best": [[int(i), round(float(probabilities[i]), 6)] for i in best],
                "frames": frames[index],
            }
            file.write(json.dumps(line) + "\n")
