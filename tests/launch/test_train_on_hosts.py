"""The command on several hosts, which are processes of this one."""

import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.launch import train
from internvideo_jax.training.metrics import read_metrics
from tests.launch.test_train import CONFIG, write_clips
from tests.processes import children, ends, system, wait_until


@pytest.fixture
def command(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return [
        *("-m", "internvideo_jax.launch.main", "train"),
        f"--config={tmp_path / 'tiny.py'}:{write_clips(tmp_path)}",
    ]


# The command in a folder of its own for each host, with less patience.
ELSEWHERE = """
import os, sys
from pathlib import Path
from internvideo_jax.launch.main import main
from internvideo_jax.parallel import hosts

join = hosts.join
hosts.join = lambda found: join(found, float(sys.argv[2]))
os.chdir(Path(sys.argv[1]) / os.environ[hosts.PROCESS_ID])
sys.exit(main(sys.argv[3:]))
"""


def elsewhere(folder, command, seconds=120):
    """The same command of each host in `FOLDER/NUMBER`."""
    for number in "01":
        (folder / number).mkdir(exist_ok=True)
    return ["-c", ELSEWHERE, folder, seconds, *command[2:]]


def metrics(workdir, name="loss"):
    return [line[name] for line in read_metrics(workdir / "metrics.jsonl") if name in line]


@pytest.mark.slow
def test_two_hosts_train_as_one_and_the_first_speaks(command, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--config.train.steps=6", "--config.train.eval_every=3"]
    with (
        system(1, 2, *command, f"--workdir={one}", *options) as alone,
        system(2, 1, *command, f"--workdir={two}", *options) as together,
    ):
        found = [*ends(alone), *ends(together)]
    assert [end.code for end in found] == [0, 0, 0], found
    assert len(metrics(two)) == 6
    # The devices are as many, but sums over two hosts are made in another order.
    np.testing.assert_allclose(metrics(two), metrics(one), rtol=1e-5)
    assert metrics(two, "eval/clips") == [12.0, 12.0]
    _, first, second = found
    assert "waiting for all 2 processes (JAX_COORDINATOR_ADDRESS" in first.error
    assert "on 2 cpu device(s)" in first.error
    assert first.output.startswith("trained -> ")
    assert second.output == ""
    for word in ("step", "warm-up", "waiting"):
        assert word not in second.error, second.error


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
                    noticed = time.monotonic()
            assert together[0].wait(60) == 42, "".join(said)
            silent.join(60)
            assert together[1].returncode == 42
            # Spot machines are given so many seconds.
            assert time.monotonic() - noticed < 30
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
    options = ["--config.train.steps=300", "--config.train.eval_every=300"]
    options += ["--config.train.checkpoint.every_steps=40", "--config.train.log_every=20"]
    supervised = [*command[:2], "supervise", "--delay=1", "--failures=50", *command[2:], *options]

    def steps():
        found = workdir.glob("checkpoints/*")
        return [int(path.name) for path in found if path.name.isdecimal()]

    with system(2, 1, *supervised, f"--workdir={workdir}") as together:
        wait_until(lambda: max(steps(), default=0) >= 80, "checkpoints", 120)
        [run] = children(together[1].pid)
        os.kill(run, signal.SIGKILL)
        found = ends(together)
    assert [end.code for end in found] == [0, 0], found
    for end in found:
        assert "started again in 1 s" in end.error
    assert re.search(r"from step [1-9]\d*0$", found[0].error, re.MULTILINE)
    # No step is missing or there twice.
    lines = [line["step"] for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]
    assert lines == list(range(20, 301, 20))


@pytest.mark.slow
def test_folders_that_not_all_hosts_see_are_refused(command, tmp_path):
    with system(2, 1, *elsewhere(tmp_path, command), "--workdir=run") as together:
        found = ends(together)
    assert [end.code for end in found] == [2, 2], found
    for end in found:
        assert "a folder that all 2 processes see, found one of process 0 that 1" in end.error
    # Nothing is left of it.
    assert [list((tmp_path / number).iterdir()) for number in "01"] == [[], []]


@pytest.mark.slow
def test_clips_that_one_host_cannot_read_are_replaced_and_counted(command, tmp_path):
    options = ["--config.train.steps=6", "--config.train.eval_every=6"]
    options += ["--config.data.root=clips", "--config.eval_data.root=clips"]
    argv = elsewhere(tmp_path, command)
    for number in "01":
        (tmp_path / number / "clips").mkdir()
        for clip in tmp_path.glob("*.mp4"):
            shutil.copy(clip, tmp_path / number / "clips")
    broken = (1, 2, 3, 4, 6, 9)
    for clip in broken:
        (tmp_path / "1" / "clips" / f"{clip}.mp4").write_bytes(b"no video")
    with system(2, 1, *argv, f"--workdir={tmp_path / 'run'}", *options) as together:
        found = ends(together)
    assert [end.code for end in found] == [0, 0], found
    first, second = found
    assert "replaced by the next clip" not in first.error
    named = set(re.findall(r"replaced by the next clip: .*?(\d+)\.mp4", second.error))
    assert named <= {str(clip) for clip in broken}
    assert named
    # Each is counted, whichever host had it, and however often.
    assert sum(metrics(tmp_path / "run", "replaced")) >= len(named)
    # Of the evaluation the second host has the odd clips.
    assert metrics(tmp_path / "run", "eval/failed") == [3.0]
    assert metrics(tmp_path / "run", "eval/clips") == [9.0]
    assert first.error.count("left out of the evaluation: ") == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "missing"), [(0, "2 processes to meet at"), (1, "process 0 of 2 at")]
)
def test_a_host_that_finds_nobody_says_so_in_time(command, tmp_path, number, missing):
    argv = [*elsewhere(tmp_path, command, 8), f"--workdir={tmp_path / 'run'}"]
    with system(2, 1, *argv, only=[number]) as alone:
        [end] = ends(alone)
    assert end.code == 2, end
    [line] = [text for text in end.error.splitlines() if text.startswith("internvideo-jax")]
    assert re.search(
        f"expected {missing} .* within 8 s .JAX_COORDINATOR_ADDRESS.*; start the same command on"
        " every host",
        line,
    ), end.error
    assert not (tmp_path / "run").exists()


def test_half_of_a_setting_is_refused_before_anything_is_loaded(command, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert train.main([*command[3:], "--workdir=run"]) == 2
    assert "set JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID" in capsys.readouterr().err
