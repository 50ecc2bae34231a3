"""Results as text and tables."""

import csv
import json

import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.evaluation.classification import class_table
from internvideo_jax.evaluation.classification_report import (
    format_result,
    write_predictions,
    write_table,
)

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], np.float32)
TARGETS = np.array([[0, 1, 0], [0, 1, 0]])


def test_a_short_table_has_every_class_that_has_clips():
    text = format_result({"top1": 50.0}, class_table(SCORES, TARGETS, list("abc")), 2, 1)
    assert text.splitlines() == [
        "top1   50.00 %",
        "clips  2 (1 failed)",
        "",
        "class  clips  accuracy      AP",
        "b          2    50.00%  100.0%",
    ]


def test_a_long_table_has_the_worst():
    scores = np.eye(30)
    scores[7, 8] = 2
    text = format_result(
        {"top1": 0.0}, class_table(scores, np.eye(30), list(map(str, range(30)))), 30, 0
    )
    assert "worst 10 of 30 classes" in text
    assert text.splitlines()[4].split() == ["8", "1", "100.00%", "50.0%"]
    assert len(text.splitlines()) == 4 + 10


def test_the_csv_table(tmp_path):
    write_table(tmp_path / "table.csv", class_table(SCORES, TARGETS, ["a,b", "c", "d"]))
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a,b", "c", "d"]
    assert (rows[0]["accuracy"], rows[0]["average_precision"]) == ("", "")
    assert (rows[1]["clips"], rows[1]["correct"], rows[1]["accuracy"]) == ("2", "1", "50.0")


def test_predictions_by_clip(tmp_path):
    clips = [ClipRecord(id=name, path=f"/{name}", label=1) for name in ("x", "z")]
    frames = np.array([[[1, 2]], [[3, 4]]])
    write_predictions(tmp_path / "p.jsonl", clips, SCORES, frames)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["x", "z"]
    assert lines[1] == {
        "id": "z",
        "label": 1,
        "best": [[0, 0.5], [1, 0.3], [2, 0.2]],
        "frames": [[3, 4]],
    }
