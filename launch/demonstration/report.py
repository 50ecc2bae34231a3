"""The demo's findings as text, JSON and a page."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.data.synthetic.world import MOTIONS, SHAPES
from internvideo_jax.launch.demonstration import retrieval
from internvideo_jax.launch.demonstration.meter import Part
from internvideo_jax.launch.demonstration.probe import ProbeResult
from internvideo_jax.launch.demonstration.retrieval import Gate, Retrieval
from internvideo_jax.training.metrics import METRICS, read_metrics

# Beside the model of a run, the one that it started from.
UNTRAINED = "untrained"

# Points on motion by which stage 1 must beat the encoder that it started from.
REQUIRED_GAIN = 10.0

SEEN = (
    "The image teacher was trained on single frames of the training clips with their colour, shape"
    " and size as labels; the video teacher on the training clips with their motion as label."
    " Stage 1 saw the training clips, both teachers' features of them, and no label. The probes"
    " learn from labels of further clips, which no other model has seen, and are judged on test"
    " clips; half of those show combinations of shape with colour or motion that no training clip"
    " shows. Stage 2 started from stage 1's encoder and saw the training clips with their sound and"
    " their captions."
)


@dataclasses.dataclass(frozen=True)
class ProbeRow:
    """An encoder in the table of probes."""

    encoder: str
    motion: ProbeResult
    shape: ProbeResult


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
      name: of what was trained.
      model: directory of the saved model, in the folder of the run.
      steps: of the run.
      losses: final value of each metric to show.
      constants: a constant predictor's value of the same.
      data_wait: share of the step that the device waited for data.
      accuracy: percentage of test clips right by its own head; None without one.
    """

    name: str
    model: Path
    steps: int
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)
    data_wait: float = 0.0
    accuracy: float | None = None

    @property
    def untrained(self) -> Path:
        """The saved model that training started from."""
        return self.model.with_name(UNTRAINED)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of its metrics file."""
        return read_metrics(self.model.with_name(METRICS))

    def judged(self, constants: Mapping[str, float], accuracy: float | None = None) -> "Run":
        """The run with its losses beside those of a constant predictor."""
        lines = self.metrics()
        waits = [line["data_wait"] for line in lines if "data_wait" in line]
        return dataclasses.replace(
            self,
            losses={name: lines[-1][name] for name in constants},
            constants=constants,
            data_wait=float(np.mean(waits or [0.0])),
            accuracy=accuracy,
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings.

    Attributes:
      size: name of the demo's size.
      labels: labels of a probe.
      probes: stage 1 first, then the encoder it started from, then others.
      runs: training runs in order.
      confusions: counts `[motions, motions]` of test clips, true motions in rows, by who told them:
        the video teacher's head, and the probes of stage 1.
      retrievals: what stage 2's model finds.
      parts: costs.
      gflops: of this machine's matrix products, per second.
      cpus: that it has.
    """

    size: str
    labels: int
    probes: Sequence[ProbeRow]
    runs: Sequence[Run]
    confusions: Mapping[str, np.ndarray]
    retrievals: Sequence[Retrieval]
    parts: Sequence[Part]
    gflops: float
    cpus: int

    @property
    def gain(self) -> float:
        """Points on motion that stage 1 has over its start."""
        return self.probes[0].motion.mean - self.probes[1].motion.mean

    @property
    def gates(self) -> list[Gate]:
        """What must come out of stage 1, and of stage 2."""
        text = f"stage 1 reads motion {self.gain:+.1f} points above its untrained start"
        return [Gate(text, self.gain, REQUIRED_GAIN), *retrieval.gates(self.retrievals)]

    @property
    def has_passed(self) -> bool:
        """Whether that is enough; a demo of few steps has nothing to prove."""
        return self.size != "full" or all(gate.has_passed for gate in self.gates)

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        if self.size != "full":
            found = ", ".join(gate.text for gate in self.gates)
            return f"{found}; after these few steps that says nothing"
        return "; ".join(
            f"{gate.text}, {'' if gate.has_passed else 'NOT '}as required (at least"
            f" {gate.least:.0f})"
            for gate in self.gates
        )


def as_json(report: Report) -> dict[str, Any]:
    """The report, ready for JSON."""
    return {
        **dataclasses.asdict(report),
        "probes": [
            {"encoder": row.encoder, "motion": row.motion.as_json(), "shape": row.shape.as_json()}
            for row in report.probes
        ],
        "confusions": {name: counts.tolist() for name, counts in report.confusions.items()},
        "blind_spots": blind_spots(report),
        "runs": [{**dataclasses.asdict(run), "model": str(run.model)} for run in report.runs],
        "verdict": report.verdict,
        "passed": report.has_passed,
        "motion_gain": report.gain,
        "gates": [dataclasses.asdict(g) | {"passed": g.has_passed} for g in report.gates],
        "what_was_seen": SEEN,
    }


def as_text(report: Report) -> str:
    """The report for a terminal."""
    draws = len(report.probes[0].motion.accuracies)
    sections = [
        _table(_probe_cells(report)),
        "percent of held-out clips that a linear probe gets right, mean and deviation of"
        f" {draws} probes with {report.labels} labels each",
        _table(_motion_cells(report)),
        "percent of a motion's test clips that the video teacher's own head, and the probes of"
        " stage 1, tell right",
        *blind_spots(report),
        _table(retrieval.cells(report.retrievals)),
        retrieval.NOTE,
        _table(_run_cells(report)),
        _table(_part_cells(report)),
        f"this machine now: {report.gflops:.0f} GFLOP/s (float32 product of 2048x2048 matrices),"
        f" {report.cpus} CPUs",
    ]
    return "\n\n".join(sections)


def blind_spots(report: Report) -> list[str]:
    """A sentence for each motion that somebody tells right less often than by chance."""
    sentences = []
    for name, counts in report.confusions.items():
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for number, row in enumerate(shares):
            if row[number] < 1 / len(MOTIONS):
                taken = int(row.argmax())
                sentences.append(
                    f"{name}: {row[number]:.0%} of {MOTIONS[number]} right, {row[taken]:.0%} taken"
                    f" for {MOTIONS[taken]}; what a teacher cannot tell apart, its student is not"
                    " taught"
                )
    return sentences


def as_html(report: Report, pictures: Sequence[tuple[str, str]]) -> str:
    """The report as a page.

    Args:
      report: what to show.
      pictures: file name and caption of each, the files lying beside the page.
    """
    shown = "\n".join(
        f'<figure><img src="{html.escape(name)}" alt="{html.escape(text)}">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for name, text in pictures
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>internvideo-jax demo</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
figure {{ margin: 2rem 0; }} img {{ max-width: 100%; }} figcaption {{ color: #555; }}
</style>
<h1>InternVideo2 in miniature</h1>
<p><strong>{html.escape(report.verdict)}.</strong></p>
<pre>{html.escape(as_text(report))}</pre>
<p>{html.escape(SEEN)}</p>
{shown}
</html>
"""


Cells = list[list[str]]


def _probe_cells(report: Report) -> Cells:
    rows = [["frozen encoder", "motion", "shape"]]
    for row in report.probes:
        values = [f"{r.mean:.1f} ±{r.deviation:.1f}" for r in (row.motion, row.shape)]
        rows.append([row.encoder, *values])
    return [*rows, ["chance", f"{100 / len(MOTIONS):.1f}", f"{100 / len(SHAPES):.1f}"]]


def _motion_cells(report: Report) -> Cells:
    rows = [["motion", *report.confusions]]
    for number, motion in enumerate(MOTIONS):
        shares = [c[number, number] / max(c[number].sum(), 1) for c in report.confusions.values()]
        rows.append([motion, *(f"{100 * share:.0f}" for share in shares)])
    return rows


def _run_cells(report: Report) -> Cells:
    rows = [["run", "steps", "loss", "constant", "own head", "data wait"]]
    for run in report.runs:
        accuracy = "" if run.accuracy is None else f"{run.accuracy:.1f} %"
        wait = f"{100 * run.data_wait:.1f} %"
        losses = [f"{values['loss']:.2f}" for values in (run.losses, run.constants)]
        rows.append([run.name, str(run.steps), *losses, accuracy, wait])
    return rows


def _part_cells(report: Report) -> Cells:
    total = Part(
        "sum",
        sum(part.seconds for part in report.parts),
        sum(part.cpu_seconds for part in report.parts),
        sum(part.flops for part in report.parts),
    )
    rows = [["part", "seconds", "CPU seconds", "TFLOP"]]
    for part in (*report.parts, total):
        flops = f"{part.flops / 1e12:.2f}" if part.flops else ""
        rows.append([part.name, f"{part.seconds:.0f}", f"{part.cpu_seconds:.0f}", flops])
    return rows


def _table(rows: Cells) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
