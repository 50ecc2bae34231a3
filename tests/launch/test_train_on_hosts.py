"""The command on several hosts, which are processes of this one."""

import signal
import threading

import pytest

from internvideo_jax.launch import train
from tests.launch.test_train import CONFIG, write_clips
from tests.processes import system


@pytest.fixture
def command(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return [
        *("-m", "internvideo_jax.launch.main", "train"),
        f"--config={tmp_path / 'tiny.py'}:{write_clips(tmp_path)}",
    ]


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


def test_half_of_a_setting_is_refused_before_anything_is_loaded(command, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert train.main([*command[3:], "--workdir=run"]) == 2
    assert "set JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID" in capsys.readouterr().err
