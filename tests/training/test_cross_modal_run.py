"""Whole stage-2 runs: on one device, on eight in two processes, killed and started again."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.training.metrics import read_metrics
from tests.processes import ROOT
from tests.training.cross_modal_program import STEPS, WORDS

PROGRAM = Path(__file__).with_name("cross_modal_program.py")


def run(workdir, processes, devices, kill_at=None):
    """Starts the processes of a run and waits for their ends; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Most of the time goes into compiling.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(ROOT),
    }
    started = []
    for process in range(processes):
        options = [f"--processes={processes}", f"--process={process}", f"--port={port}"]
        if kill_at is not None and process == processes - 1:
            options.append(f"--kill_at={kill_at}")
        options += [
            f"--words={workdir.parent / 'vocab.txt'}",
            f"--cache={workdir.parent / 'cache'}",
        ]
        command = [sys.executable, str(PROGRAM), str(workdir), *options]
        log = (workdir.parent / f"{workdir.name}.{process}.log").open("a")
        started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    codes = [started[-1].wait(timeout=600)]
    for process in started[:-1]:
        if kill_at is not None:
            # It waits for the one that is gone.
            process.kill()
        codes.append(process.wait(timeout=600))
    return codes


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


@pytest.mark.slow
def test_eight_devices_in_two_processes_do_as_one_and_go_on_after_a_kill(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    one, eight, broken = (tmp_path / name for name in ("one", "eight", "broken"))
    assert run(one, 1, 1) == [0]
    assert run(eight, 2, 4) == [0, 0]
    assert len(losses(one)) == STEPS
    # Two summation orders of float32.
    np.testing.assert_allclose(losses(one), losses(eight), rtol=1e-5)

    assert run(broken, 2, 4, kill_at=15) == [-signal.SIGKILL] * 2
    assert not (broken / "model").exists()
    assert run(broken, 2, 4) == [0, 0]
    assert losses(broken) == losses(eight)
    models = [saved_model.load(workdir / "model").variables for workdir in (broken, eight)]
    jax.tree.map(np.testing.assert_array_equal, *models)
