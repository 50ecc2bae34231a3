"""Where the metrics of a run go, by name: metrics.jsonl, TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from internvideo_jax.files import write_text
from internvideo_jax.training.config import TrackerName
from internvideo_jax.training.metrics import METRICS, read_metrics

TENSORBOARD = "tensorboard"
WANDB = "wandb"
WANDB_ID = "wandb_id"


class Tracker(Protocol):
    """Takes the metrics of a run. A resumed run writes those of some steps again."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the metrics of a step; a step may have several lots."""

    def close(self) -> None:
        """Ends writing; all that was written is kept."""


class Jsonl:
    """Appends one JSON object per lot to `WORKDIR/metrics.jsonl`.

    Each line has `step` and the metrics' numbers; a non-finite one is null. The lines of steps that
    are done again are removed at the start, and a line that a kill cut off.
    """

    def __init__(self, workdir: Path, start_step: int) -> None:
        """Opens the file for a run that has done `start_step` steps."""
        self._path = workdir / METRICS
        kept = [line for line in read_metrics(self._path) if line["step"] <= start_step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line, which can be read at once."""
        finite = {name: float(v) if math.isfinite(v) else None for name, v in values.items()}
        with _named(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with _named(self._path):
            self._file.close()


class TensorBoard:
    """Writes scalars to an event file of its own in `WORKDIR/tensorboard`.

    TensorBoard drops what earlier files have of the steps that are done again; a run that starts at
    step 0 removes them. Finite values only.
    """

    def __init__(self, workdir: Path, start_step: int) -> None:
        """Opens the file for a run that has done `start_step` steps."""
        self._directory = workdir / TENSORBOARD
        with _named(self._directory):
            self._directory.mkdir(exist_ok=True)
            if not start_step:
                for earlier in self._directory.glob("events.out.tfevents.*"):
                    earlier.unlink()
            # Besides the second and the host, which the library puts there: names must be new.
            self._writer = EventsWriter(
                str(self._directory / "events"), filename_suffix=f".{os.getpid()}.{start_step}"
            )
        if start_step:
            self._add(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds scalars, which can be seen at once."""
        for name, value in values.items():
            if math.isfinite(value):
                self._add(step, summary=scalar(name, value))
        with _named(self._directory):
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        with _named(self._directory):
            self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        with _named(self._directory):
            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


class Wandb:
    """Logs to a run of Weights & Biases, the same one when the run resumes after its first step.

    Its identity is kept in `WORKDIR/wandb_id`, its files in `WORKDIR/wandb`. wandb's own variables
    set all else: WANDB_PROJECT ("internvideo-jax" by default), WANDB_ENTITY, WANDB_MODE=offline.
    """

    def __init__(self, workdir: Path, start_step: int, run_config: Mapping[str, Any]) -> None:
        """Starts or, if it has done some steps, resumes the run; `run_config` is shown with it."""
        import wandb

        identity = workdir / WANDB_ID
        if not start_step or not identity.exists():
            write_text(identity, secrets.token_hex(4) + "\n")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "internvideo-jax"),
            name=workdir.name,
            dir=str(workdir),
            id=identity.read_text(encoding="utf-8").strip(),
            resume="allow",
            config=dict(run_config),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values; those of a step that the run has already are ignored by wandb."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Waits until all is handed over."""
        self._run.finish()


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Looks whether the trackers can be had.

    Raises:
      ValueError: one is not installed.
    """
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "train.trackers: expected trackers that are installed, found no package wandb; install"
            " it with `pip install 'internvideo-jax[wandb]'`"
        )


@contextlib.contextmanager
def trackers(
    names: Sequence[TrackerName], workdir: Path, start_step: int, run_config: Mapping[str, Any]
) -> Iterator[list[Tracker]]:
    """The trackers of a run that has done `start_step` steps; closed at the end.

    Raises:
      OSError: from here and from `write`, a file cannot be written; it is named.
    """
    with contextlib.ExitStack() as stack:
        opened: list[Tracker] = []
        for name in names:
            tracker: Tracker
            if name == "jsonl":
                tracker = Jsonl(workdir, start_step)
            elif name == "tensorboard":
                tracker = TensorBoard(workdir, start_step)
            else:
                tracker = Wandb(workdir, start_step, run_config)
            opened.append(stack.enter_context(contextlib.closing(tracker)))
        yield opened


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Gives the errors of a block the path that it writes to, and the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write it ({error.strerror or error}); make room and start the same command"
            " again",
            str(path),
        ) from error
