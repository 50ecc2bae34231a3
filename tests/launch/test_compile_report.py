import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from internvideo_jax.launch import compile_report
from internvideo_jax.launch.compilation import text as report_text
from internvideo_jax.parallel import aot
from tests.processes import run_cases

needs_compiler = pytest.mark.skipif(
    aot.compiler_version() is None, reason="libtpu is not installed"
)
TINY = [
    "--config=configs/encoder.py:s14",
    "--config.model.config.depth=1",
    "--config.model.config.image_size=56",
    "--config.gradient=False",
]


def run(*arguments):
    """The command in a process of its own, as from a shell."""
    return subprocess.run(
        [sys.executable, "-m", "internvideo_jax.launch.main", "compile_report", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ,
        capture_output=True,
        text=True,
    )


def loop(depth, source, trips, seconds_per_trip, seconds):
    """A loop of a report, by hand, with one operation that takes half of its time."""
    operation = {"name": "fusion.1", "source": f"{source}/mul", "cycles": 1}
    return {
        "depth": depth,
        "name": "body",
        "source": source,
        "trips": trips,
        "trips_known": True,
        "seconds": seconds,
        "seconds_per_trip": seconds_per_trip,
        "kernels": 0,
        "dearest": [operation | {"seconds": seconds_per_trip / 2}],
    }


def report(**changes):
    """What a compilation reports, by hand."""
    program = {
        "fits": True,
        "overflow": None,
        "required_bytes": None,
        "lower_seconds": 0.5,
        "compile_seconds": 12.25,
        "memory": {
            "arguments": 2**30,
            "outputs": 2**29,
            "temporaries": 2**31,
            "program": 0,
            "total": 3.5 * 2**30,
        },
        "collectives": [
            {
                "kind": "all-gather",
                "group": 8,
                "operations": 5,
                "executions": 161,
                "bytes": 1500 * 2**20,
                "wire_bytes": 1312.5 * 2**20,
                "trips_known": True,
            }
        ],
        "estimate": {
            "label": report_text.LABEL,
            "seconds": 6.5,
            "clock_hz": 1.5e9,
            "kernel_seconds": 0.0,
            "kernel_runs": 0,
            "loops": [loop(0, "", 1, 0.5, 6.5), loop(1, "VideoViT/blocks", 48, 0.125, 6.0)],
        },
        "seconds_at_peak": 2.642,
        "seconds_on_the_wire": 0.1,
        "note": None,
        "batch_size": 128,
        "clip": {"video": [8, 224, 224, 3]},
        "analytic_flops_by_part": {"blocks": 4_500_000_000_000},
        "analytic_flops_per_clip": 4_500_000_000_000,
        "analytic_flops_per_device": 36_000_000_000_000,
    }
    return {
        "label": report_text.LABEL,
        "versions": {"jax": "0.10.2", "libtpu": "0.0.51"},
        "topology": "v5e:4x4",
        "chip": "TPU v5e",
        "devices": 16,
        "hbm_bytes_per_device": 14 * 2**30,
        "mesh": {"data": 2, "fsdp": 8, "tensor": 1, "context": 1},
        "model": {"architecture": "video_vit", "config": {}},
        "parameters": 1_050_000_000,
        "parameter_bytes": 4_200_000_000,
        "frozen_parameters": 0,
        "kept_whole": [],
        "micro_batches": 1,
        "kept_tokens": None,
        "programs": {"forward": program | changes},
    }


def lines_of(given):
    return {" ".join(line.split()) for line in report_text.render(given).splitlines()}


def test_text_of_a_report():
    given = report(note="no collectives: INTERNAL: async-update")
    given["kept_whole"] = ["params/head/kernel: axis 'vocab' of size 403 is kept whole"]
    lines = lines_of(given)
    assert f"{report_text.LABEL} (libtpu 0.0.51, jax 0.10.2)" in lines
    assert "model video_vit, 1,050.0 M parameters, 3.91 GiB" in lines
    assert "topology v5e:4x4 (TPU v5e), 16 devices with 14.00 GiB each" in lines
    assert "mesh data=2 x fsdp=8 x tensor=1 x context=1" in lines
    assert "analytic FLOPs per clip 4.500 T" in lines
    assert "memory per device: total 3.50 GiB" in lines
    assert "of the device's memory 25 %" in lines
    assert "forward all-gather 8 5 161 1,500.0 1,312.5" in lines
    assert "forward: no collectives: INTERNAL: async-update" in lines
    assert "estimated time 6.500 s" in lines
    assert "products alone, at peak 2.642 s" in lines
    assert "collectives alone, at best 0.100 s" in lines
    assert "forward all 1 500.000 6.500" in lines
    assert "forward VideoViT/blocks 48 125.000 6.000" in lines
    assert not any("kernels" in line for line in lines)
    given["programs"]["forward"]["estimate"]["kernel_seconds"] = 0.5
    assert "of it our own kernels 0.500 s" in lines_of(given)
    assert "forward - VideoViT/blocks/mul 48 62.500 3.000" in lines
    assert "note params/head/kernel: axis 'vocab' of size 403 is kept whole" in lines
    given["programs"]["forward"]["collectives"][0]["trips_known"] = False
    assert "forward all-gather 8 5 161+ 1,500.0 1,312.5" in lines_of(given)


def test_small_parts_are_left_to_json_and_kernels_without_an_estimate_are_told():
    given = report()
    estimate = given["programs"]["forward"]["estimate"]
    estimate["loops"].append(loop(1, "Head/blocks", 2, 0.01, 0.02))
    estimate["loops"][1] |= {"trips_known": False, "source": f"{'long/' * 20}blocks"}
    estimate["kernel_runs"] = 96
    text = report_text.render(given)
    assert "Head/blocks" not in text
    source = f"{'long/' * 20}blocks"
    assert f"forward …{source[-63:]} 48+ 125.000 6.000" in lines_of(given)
    assert "left out, too: 96 runs of our own kernels of unknown cycles" in text


def test_columns_stay_apart_whatever_programs_and_collectives_are_called():
    given = report()
    name, kind = "a training step with its evaluation", "an-operation-with-a-long-name"
    given["programs"][name] = given["programs"].pop("forward")
    given["programs"][name]["collectives"][0]["kind"] = kind
    assert f"{name} {kind} 8 5 161 1,500.0 1,312.5" in lines_of(given)


def test_a_training_step_shows_its_teachers_and_micro_batches():
    parts = {"student": 2_000_000_000_000, "clip_teacher": 25 * 10**12}
    given = report(analytic_flops_by_part=parts)
    given |= {"frozen_parameters": 6_900_000_000, "micro_batches": 4}
    lines = lines_of(given)
    assert "batch 128 clips of video 8x224x224x3 in 4 micro-batches" in lines
    assert "model video_vit, 1,050.0 M parameters, 3.91 GiB, 6,900.0 M frozen ones" in lines
    assert {"student 2.000 T", "clip_teacher 25.000 T"} <= lines


def test_each_kind_of_media_has_a_batch_of_its_own():
    given = report()
    of_clips = given["programs"].pop("forward")
    clip = {"image": [1, 224, 224, 3], "text": [32]}
    of_images = of_clips | {"batch_size": 512, "clip": clip}
    given["programs"] = {"video": of_clips, "image": of_images}
    assert {
        "video image",
        "batch video: 128 clips of video 8x224x224x3",
        "batch image: 512 clips of image 1x224x224x3, text 32",
        "compiled in 12.2 s 12.2 s",
    } <= lines_of(given)


def test_text_of_a_program_that_does_not_fit():
    overflow = "RESOURCE_EXHAUSTED: the total memory required (28.00G) exceeds available HBM"
    changes = {"required_bytes": 28 * 2**30}
    changes |= dict.fromkeys(("memory", "collectives", "estimate", "seconds_on_the_wire"))
    lines = lines_of(report(fits=False, overflow=overflow, **changes))
    assert f"forward: DOES NOT FIT. {overflow}" in lines
    assert "of the device's memory 200 %" in lines


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(aot, "compiler_version", lambda: None)
    assert compile_report.main([TINY[0], "--topology=v5e:4x4"]) == 2
    assert "pip install libtpu" in capsys.readouterr().err


@pytest.mark.slow
@needs_compiler
def test_user_errors_are_one_line_and_exit_code_2():
    result = run(*TINY, "--topology=v5e:4x4", "--config.mesh.tensor=4")
    assert result.returncode == 2, result.stdout + result.stderr
    progress, error = result.stderr.splitlines()
    assert progress == "compiling the forward program of v5e:4x4 ..."
    assert error.startswith("internvideo-jax compile_report: expected a number of 'heads'")
    assert "found 6, which divides by 1, 2, 3, 6;" in error


@pytest.mark.slow
@needs_compiler
def test_a_report_from_a_process_that_has_imported_jax(tmp_path, capfd):
    path = tmp_path / "made" / "report.json"
    assert compile_report.main([*TINY, "--topology=v5e:4x4", f"--json={path}"]) == 0
    captured = capfd.readouterr()
    assert "compiling the forward program of v5e:4x4 ..." in captured.err
    written = json.loads(path.read_text())
    assert captured.out == report_text.render(written) + "\n"
    assert written["mesh"] == {"data": 2, "fsdp": 8, "tensor": 1, "context": 1}
    forward = written["programs"]["forward"]
    assert forward["fits"]
    assert forward["collectives"][0]["kind"] == "all-gather"
    assert forward["memory"]["total"] < written["hbm_bytes_per_device"]
    assert forward["analytic_flops_per_device"] == 8 * forward["analytic_flops_per_clip"]


@pytest.mark.slow
@needs_compiler
def test_what_does_not_fit_is_a_report_and_exit_code_3(tmp_path):
    path = tmp_path / "report.json"
    result = run(*TINY, "--topology=v5e:1x1", "--config.batch_per_device=100000", f"--json={path}")
    assert result.returncode == 3, result.stdout + result.stderr
    assert "forward: DOES NOT FIT" in result.stdout
    forward = json.loads(path.read_text())["programs"]["forward"]
    assert forward["required_bytes"] > 15.75 * 2**30
    assert forward["memory"] is None


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:2x2x2"])
@pytest.mark.parametrize("size", ["1b", "6b"])
def test_the_large_encoders_fit(size, topology, tmp_path):
    path = tmp_path / "report.json"
    result = run(
        f"--config=configs/encoder.py:{size}",
        f"--topology={topology}",
        "--config.gradient=False",
        f"--json={path}",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    written = json.loads(path.read_text())
    forward = written["programs"]["forward"]
    # Weights are gathered in bfloat16, once a step; more than that would be a sharding mistake.
    gathered = sum(c["bytes"] for c in forward["collectives"] if c["kind"] == "all-gather")
    assert gathered == pytest.approx(2 * written["parameters"], rel=0.05)
    assert forward["lower_seconds"] < 60


@pytest.mark.slow
@needs_compiler
def test_with_the_tpu_compiler():
    run_cases(Path(__file__).with_name("tpu_step_cases.py"), **aot.ENVIRONMENT)


@pytest.mark.slow
@needs_compiler
def test_pretraining_of_the_1b_student_fits_with_both_teachers(tmp_path):
    """Some minutes: the step on 256 chips, each with 16 clips of the recipe's global batch."""
    path = tmp_path / "report.json"
    result = run("--config=configs/stage1/pretrain.py:1b", "--topology=v5e:16x16", f"--json={path}")
    assert result.returncode == 0, result.stdout + result.stderr
    written = json.loads(path.read_text())
    step = written["programs"]["train step"]
    assert (step["batch_size"], written["micro_batches"]) == (4096, 1)
    # The state is donated: its new value takes the place of the old one.
    assert step["memory"]["outputs"] < 2**20
    assert step["analytic_flops_per_device"] == 16 * step["analytic_flops_per_clip"]
    assert step["memory"]["total"] < 0.6 * written["hbm_bytes_per_device"]
    # It is 4.7 s, and was 31.4 s while attention took the frames of InternVL one by one.
    assert step["seconds_at_peak"] < step["estimate"]["seconds"] < 5.2
    # Kernels are chosen, and the cycles of all of them are known.
    assert step["estimate"]["kernel_seconds"] > 0
    assert step["estimate"]["kernel_runs"] == 0
    # Every weight is gathered in bfloat16: teachers' once, the student's for both passes.
    gathered = sum(c["bytes"] for c in step["collectives"] if c["kind"] == "all-gather")
    weights = 2 * (written["frozen_parameters"] + 2 * written["parameters"])
    assert gathered == pytest.approx(weights, rel=0.1)
    # Gradients are reduced by shards.
    scattered = sum(c["bytes"] for c in step["collectives"] if c["kind"] == "reduce-scatter")
    assert scattered > 0
