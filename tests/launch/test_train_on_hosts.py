"""The command on several hosts, which are processes of this one."""

import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.launch import train
from internvideo_jax.training.metrics import read_metrics
from tests.launch.test_train import CONFIG, write_clips
from tests.processes import outputs, system, wait_until


@pytest.fixture
def command(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return [
        *("-m", "internvideo_jax.launch.main", "train"),
        f"--config={tmp_path / 'tiny.py'}:{write_clips(tmp_path)}",
    ]


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]


@pytest.mark.slow
def test_two_hosts_train_as_one_and_the_first_speaks(command, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--config.train.steps=6", "--config.train.eval_every=3"]
    with (
        system(1, 2, *command, f"--workdir={one}", *options) as alone,
        system(2, 1, *command, f"--workdir={two}", *options) as together,
    ):
        said = [process.communicate(timeout=300) for process in together]
        assert [process.returncode for process in together] == [0, 0], said
        outputs(alone)
    assert len(losses(two)) == 6
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    (out, error), (silent_out, silent_error) = said
    assert "waiting for all 2 processes (JAX_COORDINATOR_ADDRESS" in error
    assert "on 2 cpu device(s)" in error
    assert out.startswith("trained -> ")
    assert silent_out == ""
    assert "step" not in silent_error
    assert "warm-up" not in silent_error


@pytest.mark.slow
def test_a_notice_to_one_host_stops_both_with_a_checkpoint_from_which_they_go_on(command, tmp_path):
    many = ["--config.train.steps=1000000", "--config.train.eval_every=1000000"]
    many += [f"--workdir={tmp_path / 'run'}", "--config.train.checkpoint.every_steps=1000000"]

    def stopped(number):
        """The first line of a run, and its last step, of which one process gets SIGTERM."""
        with system(2, 1, *command, *many) as together:
            # Nobody may wait for a reader.
            silent = threading.Thread(target=together[1].communicate)
            silent.start()
            said = []
            for line in together[0].stderr:
                said.append(line)
                is_third = sum(other.startswith("step ") for other in said) == 3
                if is_third and line.startswith("step "):
                    together[number].send_signal(signal.SIGTERM)
            assert together[0].wait(60) == 42, "".join(said)
            silent.join(60)
            assert together[1].returncode == 42
            [start] = [line for line in said if line.startswith("training ")]
            [end] = [line for line in said if line.startswith("stopped by SIGTERM after step ")]
            return start, int(end.split("after step ")[1].split(",")[0])

    start, step = stopped(1)
    assert start.endswith("from the start\n")
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    start, later = stopped(0)
    assert start.endswith(f"from step {step}\n")
    assert later > step


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes in /proc")
def test_supervised_hosts_go_on_after_one_of_them_was_killed(command, tmp_path):
    workdir = tmp_path / "run"
    options = [
        f"--workdir={workdir}",
        "--config.train.steps=3000",
        "--config.train.eval_every=3000",
    ]
    options += ["--config.train.checkpoint.every_steps=200", "--config.train.log_every=100"]
    supervised = [*command[:2], "supervise", "--delay=1", *command[2:], *options]
    with system(2, 1, *supervised) as together:
        _, second = together
        wait_until(lambda: steps(workdir) and max(steps(workdir)) >= 400, "checkpoints", 120)
        os.kill(child(second.pid), signal.SIGKILL)
        said = [process.communicate(timeout=300)[1] for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    for error in said:
        assert "started again in 1 s" in error
    assert re.search(r"from step [1-9]\d*00$", said[0], re.MULTILINE)
    # No step is missing or there twice.
    logged = [line["step"] for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]
    assert logged == list(range(100, 3001, 100))


def steps(workdir):
    return [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal()]


def child(pid):
    [number] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(number)


@pytest.mark.slow
def test_folders_that_not_all_hosts_see_are_refused(command, tmp_path):
    program = (
        "import os, sys; from internvideo_jax.launch.main import main;"
        f" os.chdir(os.path.join({str(tmp_path)!r}, os.environ['JAX_PROCESS_ID']));"
        " sys.exit(main(sys.argv[1:]))"
    )
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
    with system(2, 1, "-c", program, *command[2:], "--workdir=run") as together:
        said = [process.communicate(timeout=300) for process in together]
    assert [process.returncode for process in together] == [2, 2], said
    for _, error in said:
        assert "expected a folder that all 2 processes see, found one of process 0 that 1" in error
    # Nothing is left of it.
    assert [list((tmp_path / name).iterdir()) for name in ("0", "1")] == [[], []]


def test_half_of_a_setting_is_refused_before_anything_is_loaded(command, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert train.main([*command[3:], "--workdir=run"]) == 2
    assert "set JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID" in capsys.readouterr().err
