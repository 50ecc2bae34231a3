"""What a run shows: the lines of metrics.jsonl, a loss curve, its progress."""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from internvideo_jax.files import atomic_file

METRICS = "metrics.jsonl"
LOSS_CURVE = "loss.png"

# The longest time without a line, in seconds.
_MAX_SILENCE = 30.0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file, up to a line that is not whole; none without the file."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def average(window: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of the metrics of some steps over the finite values; NaN where there is none.

    Steps of other media may lack a metric; it is the mean of those that have it. `skipped` is their
    number instead, `learning_rate` and `bad_steps` are the last step's.
    """
    result: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics in window for name in metrics):
        values = np.array([metrics[name] for metrics in window if name in metrics], np.float64)
        if name in ("learning_rate", "bad_steps"):
            result[name] = float(values[-1])
        elif name == "skipped":
            result[name] = float(values.sum())
        else:
            finite = values[np.isfinite(values)]
            result[name] = float(finite.mean()) if len(finite) else math.nan
    return result


class Progress:
    """How a run gets on: a bar on a terminal, else a line per log; silent if not `visible`.

    Where nothing else is said for half a minute, a line says what the run is at.
    """

    def __init__(
        self,
        total: int,
        *,
        visible: bool,
        on_begin: Callable[[str], None] = lambda task: None,
    ) -> None:
        """Starts the clock.

        Args:
          total: steps of the run.
          visible: False on all processes but one.
          on_begin: is told, on all of them, what the run is at from now on.
        """
        self._visible = visible
        self._on_begin = on_begin
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            disable=not (visible and is_terminal),
            unit="step",
            dynamic_ncols=True,
        )
        self._prints_lines = visible and not is_terminal
        self._total = total
        self._steps = self._examples = 0
        self._data_seconds = 0.0
        self._start = time.perf_counter()
        self._task = "starting"
        self._task_start = self._last_line = time.monotonic()
        self._is_closed = threading.Event()
        if visible:
            threading.Thread(target=self._break_silence, name="progress", daemon=True).start()

    def go_on_from(self, step: int) -> None:
        """Counts the steps that an earlier start has done."""
        self._bar.initial = self._bar.n = step

    def restart_clock(self) -> None:
        """Forgets the time since the last log, e.g. after compiling or evaluating."""
        self._steps, self._examples, self._data_seconds = 0, 0, 0.0
        self._start = time.perf_counter()

    def step(self, data_seconds: float, examples: int) -> None:
        """Counts a step of so many examples, which waited so long for its data."""
        self._steps += 1
        self._examples += examples
        self._data_seconds += data_seconds
        self._bar.update()

    def rates(self) -> dict[str, float]:
        """Seconds per step, examples per second and share of waiting for data, since the start.

        Empty if no step was counted since the clock started.
        """
        seconds, steps, waited = time.perf_counter() - self._start, self._steps, self._data_seconds
        if not steps:
            return {}
        return {
            "seconds_per_step": seconds / steps,
            "examples_per_second": self._examples / seconds,
            "data_wait": waited / seconds,
        }

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a step's loss and rates."""
        parts = [f"{name.removeprefix('eval/')} {v:.4g}" for name, v in _shown(values).items()]
        if "seconds_per_step" in values:
            parts.append(f"{values['seconds_per_step']:.3g} s/step")
            parts.append(f"{values['examples_per_second']:.3g} examples/s")
            parts.append(f"data wait {100 * values['data_wait']:.0f} %")
        if self._prints_lines:
            if "seconds_per_step" in values:
                remaining = values["seconds_per_step"] * (self._total - step)
                parts.append(f"{tqdm.format_interval(remaining)} left")
            print(f"step {step}/{self._total}: {', '.join(parts)}", file=sys.stderr, flush=True)
        self._bar.set_postfix_str(", ".join(parts))
        self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        """A line that the bar does not overwrite."""
        if self._visible:
            self._bar.write(text, file=sys.stderr)
        self._last_line = time.monotonic()

    def begin(self, task: str, *, aloud: bool = False) -> None:
        """Notes what the run is at from now on, to be said at once or when it takes long."""
        self._task, self._task_start = task, time.monotonic()
        self._on_begin(task)
        if aloud:
            self.say(task)

    def is_silent(self) -> bool:
        """Whether a line is due, as there was none for half a minute."""
        return time.monotonic() - self._last_line >= _MAX_SILENCE

    def close(self) -> None:
        """Ends the bar."""
        self._is_closed.set()
        self._bar.close()

    def _break_silence(self) -> None:
        while not self._is_closed.wait(1.0):
            # The loop knows more to say of steps that end; two seconds are for it.
            if time.monotonic() - self._last_line >= _MAX_SILENCE + 2.0:
                seconds = time.monotonic() - self._task_start
                self.say(f"{self._task}: for {tqdm.format_interval(seconds)} so far")


def _shown(values: Mapping[str, float]) -> dict[str, float]:
    first = {name: values[name] for name in ("loss", "learning_rate") if name in values}
    if_any = {name: values[name] for name in ("skipped", "replaced") if values.get(name)}
    return first | if_any | {name: v for name, v in values.items() if name.startswith("eval")}


def plot_losses(metrics: Path, target: Path) -> None:
    """Draws the loss of a metrics file over the steps; nothing if it holds none."""
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(metrics) if line.get("loss") is not None]
    if not lines:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], linewidth=1)
    axes.grid(alpha=0.3)
    with atomic_file(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})
