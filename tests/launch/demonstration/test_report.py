import dataclasses
import html
import json
import time
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.launch.demonstration import figures, report
from internvideo_jax.launch.demonstration.meter import Part, measured
from internvideo_jax.launch.demonstration.probe import ProbeResult
from internvideo_jax.launch.demonstration.retrieval import Retrieval


def row(name, *accuracies):
    result = ProbeResult(accuracies, np.zeros((len(accuracies), 4), int))
    return report.ProbeRow(name, result, ProbeResult((25.0,), np.zeros((1, 4), int)))


# Anticlockwise is taken for clockwise.
CONFUSION = np.diag([50, 50, 50, 50, 50, 1, 50, 50])
CONFUSION[5, 4] = 49

FOUND = {
    "clips_1": 62.0, "clips_2": 61.0, "crossed": 45.0, "sounds": 42.0, "both": 80.0,
    "voices_seen": 30.0, "voices_heard": 70.0,
}  # fmt: skip


def found(**changes):
    """Measurements by embeddings alone."""
    return [
        Retrieval(name, 200, {"similarity": value, "dsl": value, "rerank": value + 1}, 0.5)
        for name, value in (FOUND | changes).items()
    ]


REPORT = report.Report(
    "full",
    300,
    [row("stage 1", 60.0, 62.0), row("untrained <here>", 40.0, 42.0)],
    [report.Run("stage 1", Path("m"), 120, {"loss": 1.25, "mae": 1.0}, {"loss": 5.5}, 0.012)],
    {"video teacher": CONFUSION, "stage 1": np.eye(8, dtype=int)},
    found(),
    [Part("world", 10.0, 20.0), Part("stage 1", 30.0, 50.0, 2e12)],
    gflops=470.0,
    cpus=2,
)


def test_the_verdict_follows_from_the_probes():
    assert REPORT.gain == pytest.approx(20)
    assert REPORT.has_passed
    assert "+20.0 points above its untrained start, as required" in REPORT.verdict
    poor = dataclasses.replace(REPORT, probes=[row("stage 1", 49.9), row("untrained", 40.0)])
    assert not poor.has_passed
    assert "NOT as required" in poor.verdict
    fast = dataclasses.replace(poor, size="fast")
    assert fast.has_passed
    assert "says nothing" in fast.verdict


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        # Both halves count together.
        ({"clips_1": 59.0}, []),
        ({"clips_1": 58.0}, [(59.5, 60)]),
        ({"crossed": 39.5}, [(39.5, 40)]),
        ({"sounds": 39.5}, [(39.5, 40)]),
        ({"voices_heard": 39.0, "crossed": 10.0}, [(10.0, 40), (9.0, 10)]),
    ],
)
def test_the_verdict_follows_from_retrieval(changes, failed):
    judged = dataclasses.replace(REPORT, retrievals=found(**changes))
    missed = [gate for gate in judged.gates if not gate.has_passed]
    assert [(gate.value, gate.least) for gate in missed] == failed
    assert judged.has_passed == (not failed)
    assert judged.verdict.count("NOT as required") == len(failed)


def test_text_has_a_line_for_everything():
    lines = report.as_text(REPORT).splitlines()
    assert any(line.split() == ["stage", "1", "61.0", "±1.0", "25.0", "±0.0"] for line in lines)
    assert any(line.split() == ["chance", "12.5", "25.0"] for line in lines)
    assert any(line.split() == ["stage", "1", "120", "1.25", "5.50", "1.2", "%"] for line in lines)
    assert any(line.split() == ["sum", "40", "70", "2.00"] for line in lines)
    assert any(line.split() == ["anticlockwise", "2", "100"] for line in lines)
    assert any(line.split()[-5:] == ["200", "45.0", "45.0", "46.0", "0.5"] for line in lines)
    assert "470 GFLOP/s" in lines[-1]


def test_motions_that_nobody_tells_apart_are_named():
    (sentence,) = report.blind_spots(REPORT)
    assert sentence.startswith("video teacher: 2% of anticlockwise right, 98% taken for clockwise")
    assert sentence in report.as_text(REPORT)


def test_the_page_says_what_was_seen_and_shows_the_pictures():
    page = report.as_html(REPORT, [("losses.png", "Losses & more")])
    assert report.SEEN in html.unescape(page)
    assert "untrained &lt;here&gt;" in page
    assert '<img src="losses.png" alt="Losses &amp; more">' in page
    assert REPORT.verdict in page


def test_json_holds_the_numbers():
    data = json.loads(json.dumps(report.as_json(REPORT), allow_nan=False))
    assert data["passed"] is True
    motion = {"mean": 61.0, "deviation": 1.0, "accuracies": [60.0, 62.0]}
    assert data["probes"][0]["motion"] == motion
    assert data["parts"][1]["flops"] == 2e12
    assert data["runs"][0]["constants"] == {"loss": 5.5}
    assert data["confusions"]["video teacher"][5][4] == 49
    assert len(data["blind_spots"]) == 1
    assert data["retrievals"][2]["recalls"]["rerank"] == 46
    assert [gate["passed"] for gate in data["gates"]] == [True] * 5


def test_parts_are_measured():
    parts = []
    with measured(parts, "work") as part:
        part.flops = 3.0
        until = time.process_time() + 0.05  # its CPU clock may tick every 10 ms
        while time.process_time() < until:
            pass
    (found,) = parts
    assert (found.name, found.flops) == ("work", 3.0)
    assert 0 < found.cpu_seconds < 10
    assert found.seconds > 0


def test_loss_curves_lie_beside_what_a_constant_reaches():
    lines = [{"step": 10, "mae": 2.0}, {"step": 15, "eval": 1}, {"step": 20, "mae": 1.0}]
    figure = figures.loss_figure([("stage 1", lines, {"mae": 1.5})])
    curve, constant = figure.axes[0].lines[:2]
    assert curve.get_xydata().tolist() == [[10, 2], [20, 1]]
    assert set(constant.get_ydata()) == {1.5}
    assert curve.get_label() == "video teacher's tokens"


def test_masks_darken_what_the_student_does_not_see():
    frames = np.full((2, 8, 8, 3), 200, np.uint8)
    kept = np.zeros((2, 2, 2), bool)
    kept[1, 0, 1] = True
    figure = figures.mask_figure([(frames, np.full((2, 2, 2), 0.25), kept)])
    seen = [np.asarray(ax.images[0].get_array()) for ax in figure.subfigs[2].axes]
    assert seen[0].max() == 30
    assert (seen[1][:4, 4:] == 200).all()
    assert seen[1][4:].max() == 30


def test_the_world_is_shown_under_its_captions():
    figure = figures.world_figure([("a red ring", np.zeros((3, 4, 4, 3), np.uint8))] * 2)
    assert len(figure.axes) == 6
    assert figure.axes[3].get_title(loc="left") == "a red ring"
