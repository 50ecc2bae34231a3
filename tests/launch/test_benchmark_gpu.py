"""`benchmark gpu`, rehearsed on the CPU, and how its rows are compared."""

import importlib.util
import json

import pytest

from internvideo_jax.launch import benchmark
from internvideo_jax.launch.benchmarks.gpu import comparison, ours
from internvideo_jax.launch.benchmarks.gpu.cases import (
    SMALL_ATTENTION,
    SMALL_ENCODERS,
    Attention,
    Encoder,
    Row,
    measured,
)

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the extra `torch` is not installed"
)
OPERATION = Attention(1, 9, 2, 8)
TRAINING = Encoder("training", 8, is_trained=True)


@pytest.fixture(autouse=True)
def without_processes(monkeypatch):
    monkeypatch.setattr(comparison, "run_apart", lambda function, *args, threads: function(*args))


def rehearse(folder):
    file = folder / "rows.json"
    assert benchmark.main(["gpu", "--rehearse", f"--json={file}"]) == 0
    return json.loads(file.read_text())


def test_a_short_rehearsal_of_our_side(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(comparison.cases, "SMALL_ENCODERS", SMALL_ENCODERS[2:])
    monkeypatch.setattr(ours, "_REMATS", ("attention",))
    rows = rehearse(tmp_path)
    assert [row["shape"] for row in rows] == ["masked training", "33x2x8", "16x4x8"]
    assert {row["status"] for row in rows} == {"ok"}
    printed = capsys.readouterr()
    assert "| internvideo_jax, remat=attention |" in printed.out
    assert "pip install 'internvideo-jax[torch]'" in printed.err


@pytest.mark.slow
@needs_torch
def test_the_rehearsal(tmp_path, capsys):
    rows = rehearse(tmp_path)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["chip"] for row in rows} == {"cpu"}
    mine = [row for row in rows if row["implementation"].startswith("internvideo_jax")]
    assert len(mine) == len(SMALL_ATTENTION) + 1 + 2 * 3
    assert {row["shape"] for row in mine} == {"33x2x8", "16x4x8"} | {c.name for c in SMALL_ENCODERS}
    for row in rows:
        is_trained = row["shape"] in {"33x2x8", "training", "masked training"}
        assert (row["forward_backward_ms"] is not None) == is_trained
    assert "attention, geometric mean" in capsys.readouterr().out
    assert len(rows) - len(mine) == len(SMALL_ATTENTION) + 2 + 2 * 3


def test_without_a_gpu_it_says_what_to_do():
    with pytest.raises(ValueError, match="expected JAX to have a gpu, found cpu; .* --rehearse"):
        ours.measure([], {}, "gpu", 1, 1.0)


def operation(side, forward, both=None):
    return Row(OPERATION, side, side, forward, both)


def training(side, way, ms, peak=None):
    return Row(TRAINING, side, way, None, ms, peak)


def named(rows):
    return {figure.name: figure for figure in comparison.figures(rows).figures}


def test_operations_are_compared_with_the_best_of_the_peer():
    rows = [operation("ours", 2.0, 8.0), operation("peer", 1.8, 9.0), operation("peer", 3.0, 7.2)]
    figures = named(rows)
    assert figures["attention, geometric mean"].value == pytest.approx(0.9)
    assert figures["attention, least"].value == pytest.approx(0.9)
    assert not figures["attention, geometric mean"].holds
    assert figures["attention, least"].holds
    assert comparison.figures(rows[:1]) is None
    missing = named([operation("ours", None), *rows[1:]])
    assert missing["attention, least"].value == 0


def test_encoders_may_need_no_more_memory_than_the_peers_best_row():
    peers = [
        training("peer", "PyTorch compiled, cuDNN", 280.0, 39.0),
        training("peer", "PyTorch compiled, cuDNN, remat", 372.0, 5.0),
        training("peer", "PyTorch eager, FlashAttention-2", 494.0, 70.0),
    ]
    mine = [
        training("ours", "internvideo_jax, remat=none", 200.0, 90.0),
        training("ours", "internvideo_jax, remat=attention", 250.0, 30.0),
        training("ours", "internvideo_jax, remat=full", 310.0, 12.0),
    ]
    figures = named([*mine, *peers])
    assert {name: round(figure.value, 3) for name, figure in figures.items()} == {
        "training, beside best": 1.12,
        "training, beside remat": 1.2,
        "training, beside upstream's way": 2.47,
    }
    assert all(figure.holds for figure in figures.values())
    assert named([mine[0], *peers])["training, beside best"].value == 0


def test_a_case_that_fails_or_comes_too_late_does_not_stop_the_others():
    def fail():
        raise RuntimeError("out of\nmemory")

    rows = [training("ours", way, 1.0) for way in ("a", "b")]
    said = []
    failed, done = measured([(rows[0], fail), (rows[1], lambda: rows[1])], 60, said.append)
    assert failed.status == "RuntimeError: out of memory"
    assert done.status == "ok"
    assert said == ["training, a: RuntimeError: out of memory", "training, b: 1.000 ms"]
    (late,) = measured([(rows[0]._replace(forward_backward_ms=None), fail)], -1, said.append)
    assert late.status.startswith("left out after")
