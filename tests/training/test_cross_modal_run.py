"""Whole stage-2 runs: on one device, and on eight in two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.training.metrics import read_metrics
from tests.processes import ROOT
from tests.training.cross_modal_program import STEPS, WORDS

PROGRAM = Path(__file__).with_name("cross_modal_program.py")


def run(workdir, processes, devices):
    """Starts the processes of a run and waits for their ends; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(ROOT),
    }
    started = []
    for process in range(processes):
        options = [f"--processes={processes}", f"--process={process}", f"--port={port}"]
        options += [
            f"--words={workdir.parent / 'vocab.txt'}",
            f"--cache={workdir.parent / 'cache'}",
        ]
        command = [sys.executable, str(PROGRAM), str(workdir), *options]
        log = (workdir.parent / f"{workdir.name}.{process}.log").open("a")
        started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return [process.wait(timeout=1500) for process in started]


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


@pytest.mark.slow
def test_eight_devices_in_two_processes_do_as_one(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    one, eight = (tmp_path / name for name in ("one", "eight"))
    assert run(one, 1, 1) == [0]
    assert run(eight, 2, 4) == [0, 0]
    assert len(losses(one)) == STEPS
    # Two summation orders of float32.
    np.testing.assert_allclose(losses(one), losses(eight), rtol=1e-5)
