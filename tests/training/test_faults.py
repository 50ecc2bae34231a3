"""What befalls runs of the command: signals while they load, kills of a run and of its workers."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from internvideo_jax.training.metrics import read_metrics
from tests.launch.test_train import CONFIG, write_clips
from tests.processes import ROOT, children, is_running, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes in /proc"),
]


class Run:
    """The command in a process of its own, on few small clips and with one worker."""

    def __init__(self, folder):
        (folder / "tiny.py").write_text(CONFIG)
        self.workdir = folder / "run"
        self.process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "internvideo_jax.launch.main", "train"),
                f"--config={folder / 'tiny.py'}:{write_clips(folder)}",
                f"--workdir={self.workdir}",
                "--config.train.steps=1000000",
                "--config.train.eval_every=1000000",
                "--config.train.checkpoint.every_steps=1000000",
                "--config.data.workers=1",
            ],
            cwd=ROOT,
            # Unoptimised code compiles faster.
            env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_until(self, text):
        said = []
        for line in self.process.stderr:
            said.append(line)
            if text in line:
                return line
        raise AssertionError("".join(said))

    def children(self):
        return children(self.process.pid)

    def end(self, number):
        self.process.send_signal(number)
        code = self.process.wait(60)
        return code, self.process.stderr and self.process.stderr.read()

    def logged_steps(self):
        return [line["step"] for line in read_metrics(self.workdir / "metrics.jsonl")]


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    yield run
    run.process.kill()
    run.process.communicate()


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def segments(pid):
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {Path(path) for path in re.findall(r"/dev/shm/psm_\w+", maps)}


def test_a_killed_worker_is_replaced_and_a_killed_run_leaves_no_process_and_no_memory(run):
    run.read_until("step 2/")
    [worker] = [pid for pid in run.children() if b"spawn_main" in command_line(pid)]
    os.kill(worker, signal.SIGKILL)
    line = run.read_until("loading starts anew at batch")
    assert "SIGKILL" in line
    step = read_metrics(run.workdir / "metrics.jsonl")[-1]["step"]
    run.read_until(f"step {step + 20}/")

    started, memory = run.children(), segments(run.process.pid)
    # The new worker and Python's resource tracker.
    assert len(started) == 2
    assert memory
    run.process.kill()
    wait_until(lambda: not any(map(is_running, started)), "children ended")
    assert not [path for path in memory if path.exists()]


@pytest.mark.parametrize(
    ("phase", "number", "code", "told"),
    [
        (
            "making the first weights",
            signal.SIGTERM,
            42,
            "stopped by SIGTERM before the first step",
        ),
        ("waiting for the first clips", signal.SIGINT, 130, "stopped by Ctrl-C before the first"),
    ],
)
def test_a_signal_while_loading_ends_a_run_that_leaves_nothing(run, phase, number, code, told):
    run.read_until(phase)
    started = run.children()
    found, error = run.end(number)
    assert found == code, error
    assert told in error
    assert "Traceback" not in error
    assert not run.workdir.exists()
    wait_until(lambda: not any(map(is_running, started)), "children ended")


def test_a_run_goes_on_without_a_reader_and_ends_with_its_terminal_in_a_checkpoint(run):
    run.read_until("step 2/")
    run.process.stderr.close()
    run.process.stderr = None
    step = run.logged_steps()[-1]
    wait_until(lambda: run.logged_steps()[-1] > step + 20, "steps go on", 60)
    code, _ = run.end(signal.SIGHUP)
    assert code == 42
    [last] = (run.workdir / "checkpoints").glob("[0-9]*")
    assert int(last.name) >= run.logged_steps()[-1] > step + 20
