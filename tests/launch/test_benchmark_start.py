"""The benchmark of what stage 1 is worth to stage 2."""

import json

import numpy as np
import pytest

from internvideo_jax.launch import benchmark
from internvideo_jax.launch.benchmarks.start import MEASURED, STARTS, StartRow


def test_differences_are_those_of_pairs():
    recalls = {
        "stage 1": {"clips_1": [30.0, 34.0], "clips_2": [31.0, 31.0], "crossed": [20.0, 23.0]},
        "untrained": {"clips_1": [26.0, 28.0], "clips_2": [30.0, 30.0], "crossed": [21.0, 22.0]},
    }
    row = StartRow(150, recalls)
    found = row.differences()
    # Of 4 and 6: 5, and a deviation of sqrt(2) over sqrt(2) pairs.
    assert found["clips_1"] == pytest.approx((5.0, 1.0))
    assert found["clips_2"] == pytest.approx((1.0, 0.0))
    assert found["mean"] == pytest.approx((2.0, 2 / 3))
    lines = row.table().splitlines()
    assert lines[2] == "| clips_1 | 32.0 | 27.0 | +5.0 ±1.0 |"
    assert lines[-1].startswith("| mean | 28.2 | 26.2 | +2.0 ±")
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["ahead"]["mean"] == 2
    single = StartRow(1, {s: {name: [50.0] for name in MEASURED} for s in STARTS})
    assert np.isnan(single.differences()["crossed"][1])


def test_it_needs_a_finished_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert benchmark.main(["start", "--fast", f"--demo={tmp_path}"]) == 2
    assert "internvideo-jax demo" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
