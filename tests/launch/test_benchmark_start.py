"""The benchmarks of what stage 1 is worth to stage 2, and of what int8 teachers change in it."""

import dataclasses
import json

import numpy as np
import pytest

from internvideo_jax.launch import benchmark
from internvideo_jax.launch.benchmarks.int8 import Int8Row
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


def test_students_of_int8_teachers_keep_within_the_seeds_of_the_others():
    plain = {"motion": [48.0, 50.0, 52.0], "loss": [1.4, 1.5, 1.6]}
    row = Int8Row(1e-4, 0.997, {"float32": plain, "int8": {"motion": [47.0, 51.0], "loss": [1.45]}})
    assert row.holds
    assert "| motion | 50 (48 to 52) | 49 (47 to 51) |" in row.table().splitlines()
    worse = {"motion": [46.0, 49.0], "loss": [1.45]}
    row = dataclasses.replace(row, found={"float32": plain, "int8": worse})
    assert not row.holds
    assert "DO NOT LIE" in row.table()
    assert not json.loads(json.dumps(row.to_json(), allow_nan=False))["holds"]


@pytest.mark.parametrize("subject", ["start", "int8"])
def test_it_needs_a_finished_demo(tmp_path, monkeypatch, capsys, subject):
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert benchmark.main([subject, "--fast", f"--demo={tmp_path}"]) == 2
    assert "internvideo-jax demo" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
