import json
import multiprocessing
import time

import jax
import pytest

from internvideo_jax.kernels.attention.shapes import Shape
from internvideo_jax.launch import benchmark
from internvideo_jax.launch.benchmarks import runner, static_profile
from internvideo_jax.launch.benchmarks.static_profile import Compiled, Profile
from internvideo_jax.launch.benchmarks.tpu import attention, blocks, tuning
from internvideo_jax.parallel import aot


@pytest.fixture
def compiler(monkeypatch):
    """Programs and what is said of them: those with gradients take three times as long.

    Kernels are the faster the more heads a step has, up to 4; tiles and chunks of 128 do not fit.
    """
    asked = []

    def profile(chip, make, *arguments):
        asked.append((chip, *arguments))
        return Profile("ok", 100, 2000, 0.004 * (1 + 2 * arguments[2]))

    def profile_kernel(chip, name, plan, heads):
        asked.append((chip, name, heads))
        if 128 in (plan.tile, plan.chunk):
            return Profile("not compiled: too much")
        return Profile("ok", 1000 + plan.tile + plan.chunk + 100 * abs(plan.heads - 4))

    def compile_estimated(chip, make, *arguments):
        asked.append((chip, *arguments))
        return Profile("the compiler died")

    monkeypatch.setattr(attention, "profile", profile)
    monkeypatch.setattr(attention, "compile_estimated", compile_estimated)
    monkeypatch.setattr(tuning, "profile_kernel", profile_kernel)
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
    assert found["417x16x88", "xla"]["status"] == "the compiler died"
    assert found["417x16x88", "xla"]["forward_ms"] is None
    assert found["417x16x88", "splash"]["status"] == "recorded, padded"
    # A frozen model has no gradients.
    assert found["257x25x128", "pallas_tpu"]["forward_backward_ms"] is None
    assert not any(case.forward_only and both for _, _, case, both in compiler)
    # XLA keeps scores of few clips in fast memory.
    assert {case.clips for _, name, case, _ in compiler if name == "xla"} == {32, 64}
    printed = capsys.readouterr().out
    assert "| 417x16x88  | 32    | v6e  | pallas_tpu     | 2.0000" in printed


def test_rows_outlive_the_end_of_a_run(compiler, monkeypatch, tmp_path):
    def measure(chip, case, name):
        if name == "xla":
            raise KeyboardInterrupt
        return attention.AttentionRow(case.name, 1, chip, name, 1.0, None, 1, "ok")

    monkeypatch.setattr(attention, "measure", measure)
    path = tmp_path / "rows.json"
    options = ["--chip=v5e", "--implementation=pallas_tpu,xla", f"--json={path}"]
    assert benchmark.main(["attention", *options]) == 130
    (row,) = json.loads(path.read_text())
    assert (row["shape"], row["implementation"]) == ("2049x16x88", "pallas_tpu")


def test_the_best_sizes_of_each_entry(compiler, tmp_path):
    path = tmp_path / "rows.json"
    options = ["--tune", "--chip=v5e", "--shape=2049x16x88,2049x25x128", f"--json={path}"]
    assert benchmark.main(["attention", *options]) == 0
    rows = json.loads(path.read_text())
    assert [(row["kernel_pass"], row["shape_class"]) for row in rows] == [
        (name, kind) for kind in ("narrow", "wide") for name in tuning.PASSES
    ]
    for row in rows:
        assert row["sizes"] == [4, 256, 256]
        assert row["cycles"] == 1512 < row["table_cycles"]


def test_layers_around_attention(compiler, monkeypatch, tmp_path):
    """Cycles of the kernels are added to those of the rest, of the passes that run."""

    def compile_estimated(chip, make, case, name, backward):
        return Profile("ok", 3_000_000 * (1 + 2 * backward), 10, 0.0)

    def pallas_cycles(chip, forward, clips, tokens, keys, heads, head_dim):
        assert (clips, tokens, keys, heads, head_dim) == (32, 417, 417, 16, 88)
        return 60_000 if forward else 180_000

    monkeypatch.setattr(blocks, "compile_estimated", compile_estimated)
    monkeypatch.setattr(blocks, "pallas_cycles", pallas_cycles)
    path = tmp_path / "rows.json"
    options = ["--blocks", "--chip=v5e", "--shape=417x16x88", f"--json={path}"]
    assert benchmark.main(["attention", *options]) == 0
    ours, xla = json.loads(path.read_text())
    assert (ours["implementation"], xla["implementation"]) == ("pallas_tpu", "xla")
    # Of 32 clips, at 1.5 GHz.
    passes = ("forward", "forward_backward")
    assert [ours[f"{name}_ms"] for name in passes] == pytest.approx([3.06 / 48, 9.24 / 48])
    assert [xla[f"{name}_ms"] for name in passes] == pytest.approx([3 / 48, 9 / 48])


def test_a_layer_as_a_program():
    """Its gradients are those of its input and parameters."""
    case = attention.Case(Shape(9, 16, 88), clips=2)
    program, (x, *parameters) = blocks.make_block(case, "xla", backward=False)
    assert x == ((2, 9, 1408), "bfloat16")
    structs = [jax.ShapeDtypeStruct(*shape) for shape in (x, *parameters)]
    assert jax.eval_shape(program, *structs).shape == x[0]
    program, shapes = blocks.make_block(case, "pallas_tpu", backward=True)
    structs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    assert [x.shape for x in jax.eval_shape(program, *structs)] == [s for s, _ in shapes[1:]]


@pytest.mark.parametrize("argument", ["--chip=v9", "--shape=1x1x1", "--implementation=flash"])
def test_unknown_names_are_refused(argument, compiler, capsys):
    assert benchmark.main(["attention", argument]) == 2
    option = argument.partition("=")[0]
    assert f"expected {option} as one or more of" in capsys.readouterr().err


def test_without_the_compiler(monkeypatch, capsys):
    monkeypatch.setattr(aot, "compiler_version", lambda: None)
    assert benchmark.main(["attention"]) == 2
    assert "found no package libtpu" in capsys.readouterr().err


def test_programs_without_numbers(monkeypatch):
    """The status says why. The profiler takes the process with it; the estimates need none."""
    ends = {"died": ChildProcessError(), "long": TimeoutError(), "bad": ValueError("no room\nmore")}

    def run_apart(function, folder, chip, make, arguments, *, threads, limit_s):
        (name,) = arguments
        if name in ends and (folder or name != "died"):
            raise ends[name]
        return Compiled(8, 3000)

    monkeypatch.setattr(static_profile, "run_apart", run_apart)
    for name, status in {
        "died": "the profiler died",
        "long": "not finished after 900 s",
        "bad": "not compiled: no room",
    }.items():
        assert static_profile.profile("v5e", None, name) == Profile(status)
    silent = Profile("the profiler is silent", hbm_bytes=8)
    assert static_profile.profile("v5e", None, "well") == silent
    estimated = Profile("estimated by operation", 3000, 8, 3000 / 1.5e9)
    assert static_profile.compile_estimated("v5e", None, "died") == estimated


def test_a_program_that_takes_too_long_is_ended():
    with pytest.raises(TimeoutError):
        runner.run_apart(time.sleep, 60, threads=1, limit_s=0.1)
    assert not multiprocessing.active_children()


def test_cycles_of_a_kernel_grow_with_its_steps(monkeypatch):
    """The first two steps take 100 cycles more than the others, of 1000 each."""
    asked = []

    def profile(chip, make, plan, name, heads):
        asked.append((make, name, heads))
        return Profile("ok", 100 + 1000 * heads // plan.heads, 10 * heads, 0.0)

    monkeypatch.setattr(static_profile, "profile", profile)
    shape = (32, 417, 417, 16, 88)
    heads = static_profile.attention_plan("v5e", "forward", shape).heads
    assert heads > 1
    cycles = static_profile.pallas_cycles.__wrapped__("v5e", True, *shape)
    assert cycles == 100 + 1000 * 32 * 16 // heads
    assert asked == [(static_profile.make_kernel, "forward", n * heads) for n in (2, 4)]
    # One step is all.
    assert static_profile.pallas_cycles.__wrapped__("v5e", False, 1, 417, 417, 1, 88) == 1100
    monkeypatch.setattr(static_profile, "profile", lambda *_: Profile("the profiler died"))
    with pytest.raises(ValueError, match="of the forward pass of 417 .* on v5e, found: the prof"):
        static_profile.pallas_cycles.__wrapped__("v5e", True, *shape)


@pytest.mark.slow
@pytest.mark.skipif(aot.compiler_version() is None, reason="libtpu is not installed")
def test_a_kernel_through_the_compiler():
    """At least as many cycles as its products take on a full matrix unit."""
    tokens, heads, channels = 512, 2, 128
    plan = static_profile.attention_plan("v5e", "forward", (1, tokens, tokens, heads, channels))
    found = static_profile.profile_kernel("v5e", "forward", plan, heads)
    assert found.status == "ok"
    assert 4 * heads * tokens**2 * channels / 197e12 < found.seconds
    # Queries, keys, values, output, and a row of sums.
    assert found.hbm_bytes == pytest.approx(4 * heads * tokens * channels * 2, rel=0.05)
