import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.orbax_errors import hide_leftovers
from internvideo_jax.training.checkpoints import (
    Checkpoints,
    ConfigMismatchError,
    RunCheckpointError,
)
from internvideo_jax.training.state import TrainState
from tests.processes import full_disk

CONFIG = {"stage": {"kind": "toy"}, "train": {"seed": 1, "log_every": 10}}


def state(value):
    def full(shape):
        return jnp.full(shape, value, jnp.float32) + jnp.arange(shape[-1])

    return TrainState(
        step=jnp.int32(value),
        params={"head": {"kernel": full((64, 64)), "bias": full((64,)).astype(jnp.bfloat16)}},
        opt_state=({"head": {"kernel": full((64, 64))}}, jnp.int32(3)),
        extra={},
        ema=None,
        bad_steps=jnp.int32(0),
    )


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def opened(path, said=None, keep=3, config=CONFIG):
    return Checkpoints(path, config, keep=keep, say=[].append if said is None else said.append)


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1 to 4, of which three are kept."""
    with opened(tmp_path / "run") as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, state(step), {"examples": step * 8})
    return tmp_path / "run"


def assert_is(restored, value):
    jax.tree.map(np.testing.assert_array_equal, restored, state(value))
    assert jax.tree.structure(restored) == jax.tree.structure(state(value))


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_the_newest_is_restored_and_the_oldest_are_gone(saved):
    with opened(saved) as checkpoints:
        assert checkpoints.steps() == [2, 3, 4]
        assert_is(checkpoints.restore(abstract(state(0))), 4)
    meta = json.loads((saved / "4" / "meta" / "metadata").read_text())
    assert meta["examples"] == 32
    assert meta["config"] == CONFIG


def test_an_empty_directory_has_none(tmp_path):
    with opened(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(abstract(state(0))) is None


def test_what_a_kill_left_is_removed(saved):
    partial = saved / "5.orbax-checkpoint-tmp"
    partial.mkdir()
    (partial / "junk").write_text("x")
    with opened(saved) as checkpoints:
        assert_is(checkpoints.restore(abstract(state(0))), 4)
    assert not partial.exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "which"),
    [
        (truncate, lambda step: largest(step / "state")),
        (flip_a_bit, lambda step: largest(step / "state")),
        (truncate, lambda step: step / "state" / "manifest.ocdbt"),
        (truncate, lambda step: step / "meta" / "metadata"),
        (flip_a_bit, lambda step: step / "meta" / "metadata"),
        (Path.unlink, lambda step: step / "state" / "_METADATA"),
        (shutil.rmtree, lambda step: step / "state" / "d"),
    ],
    ids=[
        *("data cut off", "one bit flipped", "manifest cut off", "meta cut off"),
        *("one bit of meta flipped", "file missing", "folder missing"),
    ],
)
def test_a_broken_checkpoint_gives_way_to_the_one_before(saved, damage, which):
    damage(which(saved / "4"))
    said: list[str] = []
    with opened(saved, said) as checkpoints:
        assert_is(checkpoints.restore(abstract(state(0))), 3)
        assert checkpoints.steps() == [2, 3]
        # The step is done again.
        checkpoints.save(4, state(4), {})
    [line] = said
    assert line.startswith(f"checkpoint {saved}/4 cannot be read (")
    assert line.endswith("kept as 4.broken, resuming from step 3")
    assert (saved / "4.broken").is_dir()
    with opened(saved) as checkpoints:
        assert_is(checkpoints.restore(abstract(state(0))), 4)


def test_whatever_file_is_damaged_a_right_state_is_restored(saved, tmp_path):
    """Some say what is known otherwise: then the newest checkpoint is right still."""
    files = [path.relative_to(saved) for path in (saved / "4").rglob("*") if path.is_file()]
    assert len(files) > 10
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(saved, copy)
        (Path.unlink if number % 2 else flip_a_bit)(copy / file)
        with opened(copy) as checkpoints:
            restored = checkpoints.restore(abstract(state(0)))
        assert restored.step in (3, 4)
        assert_is(restored, int(restored.step))


def test_if_all_are_broken_nothing_is_moved(saved):
    for step in "234":
        truncate(largest(saved / step / "state"))
    for _ in range(2):
        with opened(saved) as checkpoints, pytest.raises(RunCheckpointError) as caught:
            checkpoints.restore(abstract(state(0)))
        lines = str(caught.value).splitlines()
        assert [line.split(":")[0].strip() for line in lines[1:4]] == ["4", "3", "2"]
        assert "start anew in another workdir" in lines[-1]
    assert {"2", "3", "4"} <= set(os.listdir(saved))


def test_another_config_is_refused_with_all_differences(saved):
    config = {"stage": {"kind": "toy", "depth": 2}, "train": {"seed": 5, "log_every": 77}}
    with (
        opened(saved, config=config) as checkpoints,
        pytest.raises(ConfigMismatchError) as caught,
    ):
        checkpoints.restore(abstract(state(0)))
    assert str(caught.value).splitlines()[1:-1] == [
        "  stage.depth: absent in the checkpoint, 2 now",
        "  train.seed: 1 in the checkpoint, 5 now",
    ]
    assert set(os.listdir(saved)) == {"2", "3", "4"}


def test_a_list_of_other_clips_is_called_so(saved):
    config = CONFIG | {"clips": {"number": 3, "sha256": "0f"}}
    with (
        opened(saved, config=config) as checkpoints,
        pytest.raises(ConfigMismatchError, match=r"sha256 \(of the training list.*'0f' now"),
    ):
        checkpoints.restore(abstract(state(0)))


def large_state():
    """Does not fit there."""
    return state(5).replace(params={"noise": jax.random.normal(jax.random.key(0), (512, 512))})


@pytest.fixture
def large():
    return large_state()


def test_a_full_disk_leaves_the_earlier_checkpoints(saved, large):
    message = (
        rf"cannot write a checkpoint to {saved}: .*File too large.*;"
        " checkpoints that are complete: 2, 3, 4; make room"
    )
    with opened(saved) as checkpoints:
        with full_disk():
            checkpoints.save(5, large, {})
            with pytest.raises(RunCheckpointError, match=message):
                checkpoints.wait()
        assert not list(saved.glob("*tmp*"))
        assert_is(checkpoints.restore(abstract(state(0))), 4)


@pytest.mark.parametrize(
    ("of_run", "raised"),
    [
        (KeyError("the run's own error"), KeyError),
        # Both for want of room: one error, in more words.
        (OSError(errno.ENOSPC, "No space left on device"), RunCheckpointError),
    ],
)
def test_a_write_error_does_not_hide_another_error_of_the_run(saved, large, of_run, raised):
    said: list[str] = []

    def run():
        with opened(saved, said) as checkpoints:
            checkpoints.save(5, large, {})
            raise of_run

    with full_disk(), pytest.raises(raised) as caught:
        run()
    assert "File too large" in (said[0] if raised is KeyError else str(caught.value))


PROCESS = """
import runpy, sys

test = runpy.run_path(sys.argv[1])
try:
    with test["Checkpoints"](
        sys.argv[2], test["CONFIG"], keep=3, say=lambda line: print(line, file=sys.stderr)
    ) as checkpoints:
        test[sys.argv[3]](checkpoints)
except OSError as error:
    print(error, file=sys.stderr)
"""


def restore(checkpoints):
    checkpoints.restore(abstract(state(0)))


def save_on_full_disk(checkpoints):
    with full_disk():
        checkpoints.save(5, large_state(), {})
        checkpoints.wait()


def stderr_of(task, path, **environment):
    command = [sys.executable, "-c", PROCESS, __file__, str(path), task.__name__]
    env = {name: value for name, value in os.environ.items() if name != "INTERNVIDEO_DEBUG"}
    done = subprocess.run(
        command, env=env | environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stderr


@pytest.mark.slow
def test_a_broken_checkpoint_is_one_line_on_the_terminal(saved):
    truncate(saved / "4" / "state" / "manifest.ocdbt")
    [line] = stderr_of(restore, saved).splitlines()
    assert line.startswith(f"checkpoint {saved}/4 cannot be read (DATA_LOSS: Error reading "), line
    assert line.endswith("; at byte 12): kept as 4.broken, resuming from step 3")
    assert "tensorstore_spec" not in line
    for step in "23":
        truncate(saved / step / "state" / "manifest.ocdbt")
    lines = stderr_of(restore, saved).splitlines()
    assert len(lines) == 4
    assert all(": DATA_LOSS: Error reading " in line for line in lines[1:3])


@pytest.mark.slow
def test_a_full_disk_is_one_line_on_the_terminal_unless_debugging(saved):
    line = (
        f"cannot write a checkpoint to {saved}: File too large;"
        " checkpoints that are complete: 2, 3, 4; make room and start the same command again\n"
    )
    assert stderr_of(save_on_full_disk, saved) == line
    everything = stderr_of(save_on_full_disk, saved, INTERNVIDEO_DEBUG="1")
    assert line in everything
    assert "Traceback" in everything
    assert "asyncio" in everything


def test_leftovers_of_others_are_reported(tmp_path, caplog, monkeypatch):
    class Noisy:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    reports = []
    monkeypatch.delenv("INTERNVIDEO_DEBUG", raising=False)
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reports.append(report.exc_value))
    hide_leftovers.cache_clear()
    with opened(tmp_path / "run"):
        Noisy()
        logging.getLogger("asyncio").error(
            "Future exception was never retrieved\\nfuture: <Future finished"
            " exception=ValueError('DATA_LOSS: Error reading \"step/.zarray\" in OCDBT database')>"
        )
        for name in ("absl", "asyncio"):
            logging.getLogger(name).error("of somebody else")
    hide_leftovers.cache_clear()
    assert [str(error) for error in reports] == ["Event loop is closed"]
    assert [record.name for record in caplog.records] == ["absl", "asyncio"]
