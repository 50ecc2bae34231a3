"""Each tracker gets every number once, whatever a run is stopped by, and says what it lacks."""

import importlib.util
import json
import math
import struct
import sys
import types
from contextlib import closing

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from internvideo_jax.training.config import OptimizerConfig, TrainConfig
from internvideo_jax.training.metrics import read_metrics
from internvideo_jax.training.trackers import Jsonl, TensorBoard, check_trackers, trackers
from tests.processes import full_disk


def test_a_line_per_log_with_null_for_what_json_does_not_know(tmp_path):
    with closing(Jsonl(tmp_path, 0)) as writer:
        writer.write(1, {"loss": 0.5, "grad_norm": math.inf})
        writer.write(2, {"loss": math.nan})
        # Readable while the run goes on.
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5, "grad_norm": None},
        {"step": 2, "loss": None},
    ]


def test_a_resumed_run_replaces_the_lines_it_does_again(tmp_path):
    with closing(Jsonl(tmp_path, 0)) as writer:
        for step in range(1, 8):
            writer.write(step, {"loss": step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "lo')
    with closing(Jsonl(tmp_path, 5)) as writer:
        writer.write(6, {"loss": 60})
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] == 60


def events(path):
    """The events of a file, read by the format: length, its CRC, payload, its CRC."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_tensorboard_gets_the_same_and_is_told_where_a_resumed_run_goes_on(tmp_path):
    for start in (0, 5):
        with closing(TensorBoard(tmp_path, start)) as writer:
            writer.write(300, {"loss": 0.25, "eval/top1": 62.5, "grad_norm": math.nan})
    first, second = (events(path) for path in sorted((tmp_path / "tensorboard").iterdir()))
    assert first[0].file_version == "brain.Event:2"
    values = [(event.step, value) for event in first for value in event.summary.value]
    scalars = [(step, value.tag, value.simple_value) for step, value in values]
    assert scalars == [(300, "loss", 0.25), (300, "eval/top1", 62.5)]
    # What earlier files have from this step on is dropped.
    starts = [event.step for event in second if event.session_log.status == SessionLog.START]
    assert starts == [6]


def test_a_start_from_the_beginning_removes_what_an_earlier_one_left(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "notes.txt").touch()
    for loss in (0.5, 0.25):
        with trackers(("jsonl", "tensorboard"), tmp_path, 0, {}) as opened:
            for tracker in opened:
                tracker.write(1, {"loss": loss})
    [lines] = read_metrics(tmp_path / "metrics.jsonl")
    assert lines == {"step": 1, "loss": 0.25}
    # The user's own files stay.
    notes, written = sorted((tmp_path / "tensorboard").iterdir(), reverse=True)
    assert notes.name == "notes.txt"
    [value] = [value for event in events(written) for value in event.summary.value]
    assert (value.tag, value.simple_value) == ("loss", 0.25)


def write_two_runs(workdir):
    """Two starts in one folder, of which the second does a step again."""
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with trackers(("jsonl", "wandb"), workdir, start, {"train": {"seed": 0}}) as opened:
            for step in steps:
                for tracker in opened:
                    tracker.write(step, {"loss": 1 / step})


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    """Of a stand-in, which records the calls."""
    runs = []

    class Run:
        def __init__(self, **options):
            self.options, self.logged, self.is_finished = options, [], False
            runs.append(self)

        def log(self, values, step):
            self.logged.append((step, values))

        def finish(self):
            self.is_finished = True

    wandb = types.ModuleType("wandb")
    wandb.init = Run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    write_two_runs(tmp_path / "run")
    first, second = runs
    assert first.options == second.options
    assert first.options["id"] == (tmp_path / "run" / "wandb_id").read_text().strip()
    assert first.options["resume"] == "allow"
    assert (first.options["project"], first.options["name"]) == ("internvideo-jax", "run")
    assert first.options["config"] == {"train": {"seed": 0}}
    assert [step for step, _ in first.logged + second.logged] == [1, 2, 3, 3, 4]
    assert first.is_finished
    assert second.is_finished
    # From the start again it is another one: wandb ignores steps that it has.
    with trackers(("wandb",), tmp_path / "run", 0, {}):
        assert runs[2].options["id"] != first.options["id"]


@pytest.mark.slow
def test_wandb_itself_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_two_runs(tmp_path / "run")
    identity = (tmp_path / "run" / "wandb_id").read_text().strip()
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert {file.name for file in files} == {f"run-{identity}.wandb"}
    assert any(b"loss" in file.read_bytes() for file in files)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    check_trackers(("jsonl", "tensorboard"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb; install it with `pip install .*\[wandb\]"):
        check_trackers(("jsonl", "wandb"))


@pytest.mark.parametrize("names", [(), ("tensorboard",), ("jsonl", "jsonl")])
def test_what_a_resumed_run_reads_cannot_be_left_out(names):
    with pytest.raises(ValueError, match="trackers: expected different names, jsonl among them"):
        TrainConfig(8, OptimizerConfig(lr=0.1), steps=1, trackers=names)


@pytest.mark.parametrize("tracker", [Jsonl, TensorBoard])
def test_a_full_disk_names_the_file_and_the_remedy(tmp_path, tracker):
    def run():
        with closing(tracker(tmp_path, 0)) as writer, full_disk(2_000):
            for step in range(100):
                writer.write(step, {"loss": 1.0})

    with pytest.raises(OSError, match="make room and start the same command again") as caught:
        run()
    assert str(tmp_path) in caught.value.filename
