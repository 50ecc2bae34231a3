import json
import math
import struct
from contextlib import closing

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from internvideo_jax.training.metrics import (
    MetricsWriter,
    Progress,
    average,
    plot_losses,
    read_metrics,
)


def test_a_line_per_log_with_null_for_what_json_does_not_know(tmp_path):
    with closing(MetricsWriter(tmp_path, 0)) as writer:
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
    with closing(MetricsWriter(tmp_path, 0)) as writer:
        for step in range(1, 8):
            writer.write(step, {"loss": step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "lo')
    with closing(MetricsWriter(tmp_path, 5)) as writer:
        writer.write(6, {"loss": 60})
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] == 60


def test_averages_of_a_window():
    window = [
        {"loss": 1.0, "learning_rate": 0.1, "skipped": 0.0, "bad_steps": 0.0},
        {"loss": math.nan, "learning_rate": 0.2, "skipped": 1.0, "bad_steps": 1.0},
        {"loss": 3.0, "learning_rate": 0.3, "skipped": 0.0, "bad_steps": 0.0},
    ]
    assert average(window) == {"loss": 2.0, "learning_rate": 0.3, "skipped": 1.0, "bad_steps": 0.0}
    assert math.isnan(average(window[1:2])["loss"])


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
        with closing(MetricsWriter(tmp_path, start)) as writer:
            writer.write(300, {"loss": 0.25, "eval/top1": 62.5, "grad_norm": math.nan})
    first, second = (events(path) for path in sorted((tmp_path / "tensorboard").iterdir()))
    assert first[0].file_version == "brain.Event:2"
    values = [(event.step, value) for event in first for value in event.summary.value]
    scalars = [(step, value.tag, value.simple_value) for step, value in values]
    assert scalars == [(300, "loss", 0.25), (300, "eval/top1", 62.5)]
    # What earlier files have from this step on is dropped.
    starts = [event.step for event in second if event.session_log.status == SessionLog.START]
    assert starts == [6]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set: `clock[0] = seconds`."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_rates(clock, capsys):
    progress = Progress(100, 20, rows=8, visible=True)
    clock[0] = 50.0
    progress.restart_clock()
    for _ in range(4):
        clock[0] += 0.5
        progress.step(0.1)
    rates = progress.rates()
    assert rates == pytest.approx(
        {"seconds_per_step": 0.5, "examples_per_second": 16.0, "data_wait": 0.2}
    )
    assert progress.rates() == {}
    progress.show(24, {"loss": 1.5, "learning_rate": 1e-3, "replaced": 0.0, **rates})
    progress.show(24, {"eval/top1": 62.5})
    progress.close()
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "step 24/100: loss 1.5, learning_rate 0.001, 0.5 s/step, 16 examples/s, data wait 20 %,"
        " 00:38 left"
    )
    assert second == "step 24/100: top1 62.5"


def test_other_processes_are_silent(capsys):
    progress = Progress(10, 0, rows=8, visible=False)
    progress.show(1, {"loss": 1.0})
    progress.say("something")
    progress.close()
    assert capsys.readouterr().err == ""


def test_loss_curve(tmp_path):
    from PIL import Image

    metrics, target = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
    plot_losses(metrics, target)
    assert not target.exists()
    metrics.write_text(
        "".join(
            json.dumps({"step": s, "loss": 1 / s if s != 3 else None}) + "\n" for s in (1, 2, 3)
        )
    )
    plot_losses(metrics, target)
    assert np.asarray(Image.open(target).convert("L")).std() > 1
