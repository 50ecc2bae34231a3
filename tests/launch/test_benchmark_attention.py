import json

import pytest

from internvideo_jax.kernels.attention.shapes import Shape
from internvideo_jax.launch import benchmark
from internvideo_jax.launch.benchmarks import attention, static_profile
from internvideo_jax.launch.benchmarks.static_profile import Profile
from internvideo_jax.parallel import aot


@pytest.fixture
def compiler(monkeypatch):
    """Programs and what is said of them: those with gradients take three times as long."""
    asked = []

    def profile(chip, make, *arguments):
        asked.append((chip, *arguments))
        if arguments[0] == "xla":
            return Profile("the profiler died")
        if make is attention.make_kernel:
            sizes = arguments[2]
            return Profile("ok", cycles=1000 if sizes is None else sum(sizes))
        return Profile("ok", 100, 2000, 0.004 * (1 + 2 * arguments[2]))

    monkeypatch.setattr(attention, "profile", profile)
    monkeypatch.setattr(aot, "compiler_version", lambda: "1.0")
    return asked


def test_rows_are_of_one_clip(compiler, tmp_path, capsys):
    path = tmp_path / "rows.json"
    arguments = ["attention", "--chip=v6e", "--shape=417x16x88,257x25x128", f"--json={path}"]
    assert benchmark.main(arguments) == 0
    rows = json.loads(path.read_text())
    assert all(row.pop("machine") for row in rows)
    # Of two clips that are compiled together.
    assert rows[0] == {
        "shape": "417x16x88",
        "batch": 32,
        "chip": "v6e",
        "implementation": "pallas_tpu",
        "forward_ms": 2.0,
        "forward_backward_ms": 6.0,
        "hbm_bytes": 1000,
        "status": "ok",
    }
    found = {(row["shape"], row["implementation"]): row for row in rows}
    assert found["417x16x88", "xla"]["status"] == "the profiler died"
    assert found["417x16x88", "xla"]["forward_ms"] is None
    assert found["417x16x88", "splash"]["status"] == "recorded, padded"
    # A frozen model has no gradients.
    assert found["257x25x128", "pallas_tpu"]["forward_backward_ms"] is None
    assert ("v6e", "jax_flash", attention.CASES[4], True) not in compiler
    printed = capsys.readouterr().out
    assert "| 417x16x88  | 32    | v6e  | pallas_tpu     | 2.0000" in printed


def test_the_best_sizes_of_each_entry(compiler, capsys):
    rows = attention.tune_attention(["v5e"])
    assert {(row.kernel_pass, row.shape_class) for row in rows} == {
        (name, kind) for name in ("forward", "backward") for kind in attention.TUNED
    }
    assert rows[0].sizes == (2, 512, 128)
    assert (rows[0].cycles, rows[0].table_cycles) == (642, 1000)


@pytest.mark.parametrize("argument", ["--chip=v9", "--shape=1x1x1"])
def test_unknown_names_are_refused(argument, compiler, capsys):
    assert benchmark.main(["attention", argument]) == 2
    option = argument.partition("=")[0]
    assert f"expected {option} as one or more of" in capsys.readouterr().err


def test_without_the_compiler(monkeypatch, capsys):
    monkeypatch.setattr(aot, "compiler_version", lambda: None)
    assert benchmark.main(["attention"]) == 2
    assert "found no package libtpu" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(aot.compiler_version() is None, reason="libtpu is not installed")
def test_a_kernel_through_the_compiler():
    """At least as many cycles as its products take on a full matrix unit."""
    tokens, heads, channels = 512, 2, 128
    case = attention.Case(Shape(tokens, heads, channels))
    found = static_profile.profile("v5e", attention.make_kernel, case, "forward", None)
    assert found.status == "ok"
    assert 4 * heads * tokens**2 * channels / 197e12 < found.seconds
    # Queries, keys, values, output, and a row of sums.
    assert found.hbm_bytes == pytest.approx(4 * heads * tokens * channels * 2, rel=0.05)
