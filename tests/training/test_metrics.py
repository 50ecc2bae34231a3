import json
import math
import struct

import numpy as np
import pytest

from internvideo_jax.training.events import EventWriter
from internvideo_jax.training.metrics import (
    MetricsWriter,
    Progress,
    average,
    plot_losses,
    read_metrics,
)


def test_a_line_per_log_with_null_for_what_json_does_not_know(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
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
    with MetricsWriter(tmp_path, 0) as writer:
        for step in range(1, 8):
            writer.write(step, {"loss": step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "lo')
    with MetricsWriter(tmp_path, 5) as writer:
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


def records(path):
    """Payloads of a file of records; checks lengths and checksums with a CRC of its own."""

    def crc(data):
        value = 0xFFFFFFFF
        for byte in data:
            value ^= byte
            for _ in range(8):
                value = (value >> 1) ^ (0x82F63B78 * (value & 1))
        value ^= 0xFFFFFFFF
        return ((value >> 15) | (value << 17)) + 0xA282EAD8 & 0xFFFFFFFF

    assert (crc(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF == (
        (0xE3069283 >> 15) | (0xE3069283 << 17)
    ) & 0xFFFFFFFF
    data, payloads = path.read_bytes(), []
    while data:
        (length, length_crc) = struct.unpack("<QI", data[:12])
        payload = data[12 : 12 + length]
        (payload_crc,) = struct.unpack("<I", data[12 + length : 16 + length])
        assert length_crc == crc(data[:8])
        assert payload_crc == crc(payload)
        payloads.append(payload)
        data = data[16 + length :]
    return payloads


def fields(message):
    """(number, value) of a protocol-buffer message; nested ones stay bytes."""
    found, position = [], 0

    def varint():
        nonlocal position
        value, shift = 0, 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        key = varint()
        if key & 7 == 0:
            value = varint()
        elif key & 7 == 2:
            length = varint()
            value = message[position : position + length]
            position += length
        else:
            width, form = {1: (8, "<d"), 5: (4, "<f")}[key & 7]
            value = struct.unpack(form, message[position : position + width])[0]
            position += width
        found.append((key >> 3, value))
    return found


def test_event_files_are_as_tensorboard_reads_them(tmp_path):
    writer = EventWriter(tmp_path, 0)
    writer.write(300, {"loss": 0.25, "eval/top1": 62.5})
    writer.close()
    [path] = tmp_path.iterdir()
    assert path.name.startswith("events.out.tfevents.")
    first, second = (fields(payload) for payload in records(path))
    assert dict(first)[3] == b"brain.Event:2"
    event = dict(second)
    assert event[2] == 300
    values = [dict(fields(value)) for number, value in fields(event[5]) if number == 1]
    assert values == [{1: b"loss", 2: 0.25}, {1: b"eval/top1", 2: 62.5}]


def test_a_resumed_event_file_marks_where_the_old_one_ends(tmp_path):
    writer = EventWriter(tmp_path, 5)
    writer.close()
    [path] = tmp_path.iterdir()
    _, mark = (dict(fields(payload)) for payload in records(path))
    assert mark[2] == 6
    assert fields(mark[7]) == [(1, 1)]


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
