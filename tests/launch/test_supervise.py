"""Real short processes are started again, or given up, and signals reach them."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from internvideo_jax.launch import supervise
from tests.processes import ROOT, wait_until

# Ends its n-th start as the n-th word says: with an exit code, after a checkpoint ("7@30"), by a
# signal ("kill"); or waits for SIGTERM and ends with 42 ("wait").
PROGRAM = """
import os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1])
starts = len(list(workdir.glob("start-*")))
what, _, step = sys.argv[2 + starts].partition("@")
signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
(workdir / f"start-{starts}").touch()
if step:
    (workdir / "checkpoints" / step).mkdir(parents=True)
if what == "wait":
    time.sleep(60)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
os._exit(int(what))
"""


@pytest.fixture
def run(tmp_path):
    def run(*ends, failures=3):
        command = [sys.executable, "-S", "-c", PROGRAM, str(tmp_path), *ends]
        code = supervise.supervise(command, tmp_path, failures=failures, delay=0.01)
        return code, len(list(tmp_path.glob("start-*")))

    return run


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (["0"], (0, 1)),
        (["42", "42@5", "42", "42", "0"], (0, 5)),
        (["1", "kill", "0"], (0, 3)),
        # What fails three times without getting on is given up, preempted in between or not.
        (["1", "42", "2", "kill", "0"], (137, 4)),
        (["1", "1", "7@30", "1", "3@60", "1", "9", "0"], (9, 7)),
        # Partial checkpoints are none.
        (["1", "1@10.orbax-checkpoint-tmp", "5", "0"], (5, 3)),
    ],
)
def test_a_run_is_started_again_until_it_is_complete_or_gets_no_further(run, ends, expected):
    assert run(*ends) == expected


def test_what_happened_is_said(run, capfd):
    run("42@20", "1", "0", failures=2)
    said = [line.partition(": ")[2] for line in capfd.readouterr().err.splitlines()]
    assert said == [
        "the run was preempted (exit code 42) after the checkpoint of step 20; started again",
        "the run failed with exit code 1 after the checkpoint of step 20, failure 1 of at most 2"
        " there; started again in 0.01 s",
    ]


def test_signals_are_handed_on_and_nothing_is_started_after_them(run, tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def stop():
        wait_until((tmp_path / "start-1").exists, "the second start")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert run("1", "wait", "0") == (42, 2)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_between_two_starts_ends_it(tmp_path):
    command = [sys.executable, "-S", "-c", PROGRAM, str(tmp_path), "1", "0"]
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert supervise.supervise(command, tmp_path, failures=3, delay=60) == 42
    timer.join()
    assert not (tmp_path / "start-1").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected `train` and its options after ours, found nothing"),
        (["predict", "a.mp4"], "found predict"),
        (["train", "--config=c.py"], "expected --workdir=DIR"),
    ],
)
def test_misuse(argv, message, capsys):
    assert supervise.main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs_train_with_its_options(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "internvideo_jax.launch.main", "supervise"),
            *("--failures=2", "--delay=1", "train", "--config=absent.py"),
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.count("internvideo-jax train: ") == 2
    assert "given up: 2 failures without a new checkpoint" in result.stderr
