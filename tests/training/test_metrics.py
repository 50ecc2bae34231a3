import json
import math

import numpy as np
import pytest

from internvideo_jax.training.metrics import (
    Progress,
    average,
    plot_losses,
)


def test_averages_of_a_window():
    window = [
        {"loss": 1.0, "learning_rate": 0.1, "skipped": 0.0, "bad_steps": 0.0},
        {"loss": math.nan, "learning_rate": 0.2, "skipped": 1.0, "bad_steps": 1.0},
        {"loss": 3.0, "learning_rate": 0.3, "skipped": 0.0, "bad_steps": 0.0},
    ]
    assert average(window) == {"loss": 2.0, "learning_rate": 0.3, "skipped": 1.0, "bad_steps": 0.0}
    assert math.isnan(average(window[1:2])["loss"])


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set: `clock[0] = seconds`."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_rates(clock, capsys):
    progress = Progress(100, visible=True)
    clock[0] = 50.0
    progress.restart_clock()
    for _ in range(4):
        clock[0] += 0.5
        progress.step(0.1, 8)
    rates = progress.rates()
    assert rates == pytest.approx(
        {"seconds_per_step": 0.5, "examples_per_second": 16.0, "data_wait": 0.2}
    )
    progress.restart_clock()
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
    progress = Progress(10, visible=False)
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
