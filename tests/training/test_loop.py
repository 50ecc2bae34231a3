import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from internvideo_jax.training.bad_steps import NonFiniteError
from internvideo_jax.training.checkpoints import RunCheckpointError
from internvideo_jax.training.config import CheckpointConfig
from internvideo_jax.training.loop import train
from internvideo_jax.training.metrics import read_metrics
from internvideo_jax.training.outputs import RunOutputError
from internvideo_jax.training.stage import Batches
from tests.training import toy_stage as toy

SCRIPT = Path(__file__).with_name("toy_stage.py")


def run(workdir, config, *, stage=None, data=None, **options):
    options = {"run_config": toy.run_config(config), "devices": jax.devices()[:1]} | options
    return train(stage or toy.ToyStage(), config, data or toy.batches(config), workdir, **options)


def model(workdir, name="model"):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir / name)


def assert_same_models(one, other):
    for name in ("model", "model_ema"):
        jax.tree.map(np.testing.assert_array_equal, model(one, name), model(other, name))


class Stop(Exception):
    pass


def broken_off(data, at):
    """The batches of `data` up to a step, at which the run breaks down."""

    def start(step):
        for batch in data(step):
            step += 1
            if step == at:
                raise Stop
            yield batch

    return start


def without_clock(line):
    timed = ("seconds_per_step", "examples_per_second", "data_wait")
    return {name: value for name, value in line.items() if name not in timed}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Where an unbroken run of the default config lies."""
    return tmp_path_factory.mktemp("unbroken")


@pytest.fixture
def reference(unbroken):
    """The folder of an unbroken run, made once."""
    if not (unbroken / "model").exists():
        assert run(unbroken, toy.make_config())
    return unbroken


def test_a_broken_run_ends_as_the_unbroken_one(reference, tmp_path):
    config = toy.make_config()
    for at in (3, 7, 12):
        # Before the first checkpoint, between two, before the last step.
        with pytest.raises(Stop):
            run(tmp_path, config, data=broken_off(toy.batches(config), at))
    assert run(tmp_path, config)
    assert_same_models(tmp_path, reference)
    metrics = [read_metrics(folder / "metrics.jsonl") for folder in (tmp_path, reference)]
    assert [without_clock(line) for line in metrics[0]] == [
        without_clock(line) for line in metrics[1]
    ]


class OfMedia(toy.ToyStage):
    """A toy stage that names its metrics after its media."""

    def __init__(self, media):
        super().__init__()
        self.name = media

    def loss(self, *args):
        loss, (metrics, extra) = super().loss(*args)
        return loss, ({f"{self.name}/magnitude": metrics["magnitude"]}, extra)


def test_each_kind_of_media_has_a_step_that_is_compiled_before_the_first(tmp_path, capsys):
    kinds = {"few": Batches(OfMedia("few"), 8), "many": Batches(OfMedia("many"), 16)}

    def data(step):
        while True:
            name = "many" if step % 3 == 1 else "few"
            rows = kinds[name].rows
            x = np.random.default_rng(step).standard_normal((rows, toy.WIDTH), np.float32)
            yield {"x": x, "media": np.full(rows, name)}
            step += 1

    config = toy.make_config(steps=6, num_sample=1)
    options = {"stage": toy.ToyStage(), "kinds": kinds}
    assert run(tmp_path / "one", config, data=data, **options)
    said = capsys.readouterr().err
    places = [said.index(text) for text in ("few (1 of 2)", "many (2 of 2)", "step 1/6")]
    assert places == sorted(places)
    lines = read_metrics(tmp_path / "one" / "metrics.jsonl")
    seen = ["many" if "many/magnitude" in line else "few" for line in lines]
    assert seen == ["few", "many", "few"] * 2
    assert all(("few/magnitude" in line) != ("many/magnitude" in line) for line in lines)
    with pytest.raises(Stop):
        run(tmp_path / "two", config, data=broken_off(data, 6), **options)
    assert run(tmp_path / "two", config, data=data, **options)
    assert_same_models(tmp_path / "one", tmp_path / "two")


def test_what_a_run_leaves(reference):
    lines = read_metrics(reference / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["replaced"] == 2
    assert {"loss", "magnitude", "grad_norm", "learning_rate", "seconds_per_step"} <= set(lines[-1])
    names = sorted(p.name for p in (reference / "checkpoints").iterdir())
    assert names == ["12", "8", "fixed"]
    meta = json.loads((reference / "checkpoints" / "8" / "meta" / "metadata").read_text())
    assert (meta["step"], meta["examples"], meta["seed"]) == (8, 64, 0)
    assert meta["config"] == toy.run_config(toy.make_config())
    assert (reference / "loss.png").stat().st_size > 1000
    weights, averages = model(reference), model(reference, "model_ema")
    assert set(weights) == {"params", "batch_stats"}
    kernels = [m["params"]["head"]["kernel"] for m in (weights, averages)]
    assert not np.array_equal(*kernels)
    assert not list(reference.glob(".*"))


def test_a_complete_run_is_left_alone(reference, capsys):
    def no_data(step):
        raise AssertionError("nothing is left to train")

    assert run(reference, toy.make_config(), data=no_data)
    assert "holds a complete run" in capsys.readouterr().err


def test_a_run_that_broke_down_while_saving_its_model_saves_it_again(reference, tmp_path):
    class Breaking(toy.ToyStage):
        def save(self, variables, directory, metadata):
            super().save(variables, directory, metadata)
            raise Stop

    config = toy.make_config()
    with pytest.raises(Stop):
        run(tmp_path, config, stage=Breaking())
    assert not (tmp_path / "model").exists()
    assert run(tmp_path, config)
    assert_same_models(tmp_path, reference)


def test_what_a_kill_at_the_end_left_out_is_made_by_the_next_start(reference, tmp_path, capsys):
    def no_data(step):
        raise AssertionError("nothing is left to train")

    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "model_ema")
    (tmp_path / "loss.png").unlink()
    (tmp_path / ".model_ema.partial" / "params").mkdir(parents=True)
    (tmp_path / ".loss.png.123.partial").write_bytes(b"half of it")
    assert run(tmp_path, toy.make_config(), data=no_data)
    assert_same_models(tmp_path, reference)
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(reference))
    assert "nothing is left to train" not in capsys.readouterr().err


def test_a_full_disk_at_the_end_is_named_and_the_next_start_saves_the_rest(reference, tmp_path):
    class Full(toy.ToyStage):
        def save(self, variables, directory, metadata):
            super().save(variables, directory, metadata)
            if directory.name == ".model_ema.partial":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    for name in ("model", "model_ema"):
        shutil.rmtree(tmp_path / name)
    message = r"cannot write .*/model_ema: expected .* free disk, found .*make room.* again"
    with pytest.raises(RunOutputError, match=message):
        run(tmp_path, toy.make_config(), stage=Full())
    assert not list(tmp_path.glob(".*"))
    kept = (tmp_path / "model").stat().st_ino
    assert run(tmp_path, toy.make_config())
    assert_same_models(tmp_path, reference)
    assert (tmp_path / "model").stat().st_ino == kept


def test_a_model_without_the_checkpoints_of_its_run_is_not_trained_over(reference, tmp_path):
    shutil.copytree(reference / "model", tmp_path / "model")
    with pytest.raises(ValueError, match="expected the checkpoints of the run that made model"):
        run(tmp_path, toy.make_config())
    assert os.listdir(tmp_path) == ["model"]


def refused(variables):
    raise ValueError("the weights do not fit")


def interrupted(variables):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)


def no_clips(step):
    raise FileNotFoundError("no clip can be read")
    yield


@pytest.mark.parametrize(
    ("initial", "data", "error"),
    [
        (refused, None, ValueError),
        (interrupted, None, KeyboardInterrupt),
        (None, no_clips, FileNotFoundError),
    ],
)
def test_a_run_that_does_no_step_leaves_nothing(tmp_path, initial, data, error):
    workdir = tmp_path / "runs" / "first"
    with pytest.raises(error):
        run(workdir, toy.make_config(), stage=toy.ToyStage(initial=initial), data=data)
    assert not list(tmp_path.iterdir())
    workdir.mkdir(parents=True)
    (workdir / "notes.txt").write_text("of the user")
    with pytest.raises(error):
        run(workdir, toy.make_config(), stage=toy.ToyStage(initial=initial), data=data)
    assert os.listdir(workdir) == ["notes.txt"]


def test_ctrl_c_in_an_evaluation_ends_in_a_checkpoint_and_it_is_made_up_for(
    reference, tmp_path, capsys
):
    config = toy.make_config(eval_every=4)
    steps = []

    def evaluation(variables, say):
        steps.append(len(steps))
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return {"calls": 1.0}

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, evaluations={"eval": evaluation})
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped by Ctrl-C after step 8, which is kept" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "8").is_dir()
    assert run(tmp_path, config, evaluations={"eval": evaluation})
    logged = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in logged if "eval/calls" in line] == [4, 8, 12]
    assert_same_models(tmp_path, reference)


def test_sigterm_ends_in_a_checkpoint_and_a_later_run_goes_on(reference, tmp_path):
    config = toy.make_config()

    def with_signal(step):
        for batch in toy.batches(config)(step):
            step += 1
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    assert run(tmp_path, config, data=with_signal) is False
    assert signal.getsignal(signal.SIGTERM) is before
    # Step 4 was due anyway; the notice came while step 6 waited for its batch.
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "5", "fixed"]
    assert not (tmp_path / "model").exists()
    assert run(tmp_path, config)
    assert_same_models(tmp_path, reference)


def test_what_is_not_trained_is_kept_once_and_needed(tmp_path):
    config = toy.make_config()
    with pytest.raises(Stop):
        run(tmp_path, config, data=broken_off(toy.batches(config), 7))
    state = tmp_path / "checkpoints" / "4" / "state"
    assert b"fixed" not in (state / "_METADATA").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "fixed")
    with pytest.raises(RunCheckpointError, match="checkpoints/fixed is gone"):
        run(tmp_path, config)


def test_parameters_that_are_trained_are_counted_apart(tmp_path, capsys):
    config = toy.make_config()
    with pytest.raises(Stop):
        run(
            tmp_path,
            config,
            stage=toy.ToyStage(frozen_layers=(0,)),
            data=broken_off(toy.batches(config), 1),
        )
    # One of two layers, and the head with its bias.
    trained = 2 * toy.WIDTH**2 + toy.WIDTH
    total = trained + 2 * toy.WIDTH**2
    assert f"training {trained} of {total:,} parameters" in capsys.readouterr().err


def test_too_many_bad_steps_in_a_row_stop_the_run(tmp_path):
    config = toy.make_config(max_bad_steps=2, log_every=100)
    data = toy.batches(config, bad=(3, 6, 7, 8))
    message = r"not finite in 2 steps in a row, the last of them step 7; .*bad_examples\.json"
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path, config, data=data)
    rows = json.loads((tmp_path / "bad_examples.json").read_text())
    assert [row["step"] for row in rows] == [6, 7]
    assert [row["first_example"] for row in rows] == [40, 48]
    assert rows[0]["index"] == list(range(6 * 16, 7 * 16))
    # Nothing of the bad steps is in the last checkpoint.
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "fixed"]


def test_a_streak_goes_on_over_a_restart(tmp_path):
    config = toy.make_config(checkpoint=CheckpointConfig(every_steps=1))
    data = toy.batches(config, bad=(5, 6, 7))
    with pytest.raises(Stop):
        run(tmp_path, config, data=broken_off(data, 7))
    with pytest.raises(NonFiniteError, match="3 steps in a row, the last of them step 7"):
        run(tmp_path, config, data=data)


def test_skipped_steps_are_logged_and_evaluations_see_weights_and_averages(tmp_path):
    seen = []

    def evaluation(variables, say):
        seen.append(np.asarray(variables["params"]["head"]["kernel"]))
        return {"norm": float(np.linalg.norm(seen[-1]))}

    config = toy.make_config(eval_every=5, log_every=5)
    data = toy.batches(config, bad=(3, 4, 7))
    assert run(tmp_path, config, data=data, evaluations={"eval": evaluation})
    logged = read_metrics(tmp_path / "metrics.jsonl")
    skipped = [(line["step"], line["skipped"]) for line in logged if "skipped" in line]
    assert skipped == [(5, 2.0), (10, 1.0), (12, 0.0)]
    assert all(np.isfinite(line["loss"]) for line in logged if "loss" in line)
    lines = [line for line in logged if "eval/norm" in line]
    assert [line["step"] for line in lines] == [5, 10, 12]
    np.testing.assert_array_equal(seen[-2], model(tmp_path)["params"]["head"]["kernel"])
    np.testing.assert_array_equal(
        seen[-1], model(tmp_path, "model_ema")["params"]["head"]["kernel"]
    )
    assert lines[-1]["eval/norm"] != lines[-1]["eval_ema/norm"]


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    config = toy.make_config()
    refused = []

    def second(step):
        with pytest.raises(BlockingIOError, match=f"in use by another run, process {os.getpid()};"):
            run(tmp_path, config)
        refused.append(step)
        raise Stop
        yield

    with pytest.raises(Stop):
        run(tmp_path, config, data=second)
    assert refused == [0]
    # The lock has gone with the run.
    assert run(tmp_path, config)


def test_another_config_is_refused(reference):
    config = toy.make_config(seed=3, log_every=5)
    with pytest.raises(ValueError, match="train.seed: 0 in the checkpoint, 3 now"):
        run(reference, config)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"y": np.zeros(3)}, "expected batches with the fields x, found y"),
        ({"x": np.zeros((16, 16))}, r"x float32\[16, 16\], found float64\[16, 16\]"),
        ({"x": np.zeros((8, 16), np.float32)}, r"x float32\[16, 16\], found float32\[8, 16\]"),
    ],
)
def test_batches_that_do_not_fit_the_stage(tmp_path, batch, message):
    def data(step):
        while True:
            yield batch

    with pytest.raises(ValueError, match=message):
        run(tmp_path, toy.make_config(), data=data)


def test_without_a_main_thread_there_is_no_signal_handler(reference):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(reference, toy.make_config())))
    thread.start()
    thread.join()
    assert results == [True]


def start(workdir, *options, steps=30, **environment):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(workdir), str(steps), *map(str, options)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code):
    _, error = process.communicate(timeout=300)
    assert process.returncode == code, error
    return error


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_processes_end_as_an_unbroken_one(tmp_path):
    """SIGKILL at steps drawn at random and in the middle of saves, SIGTERM, SIGKILL at the end."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    finish(start(unbroken), 0)
    rng = np.random.default_rng(0)
    done = 0
    for _ in range(3):
        done = int(rng.integers(done + 1, min(done + 9, 29)))
        finish(start(broken, "--kill_at", done), -signal.SIGKILL)

    def is_saving():
        return list((broken / "checkpoints").glob("*tmp*"))

    for _ in range(2):
        for partial in is_saving():
            # What an earlier kill left must not look like a save that has begun.
            shutil.rmtree(partial)
        process = start(broken, "--every_steps", 1, "--seconds", 0.05)
        wait_for(is_saving, process)
        process.kill()
        finish(process, -signal.SIGKILL)

    def newest():
        names = (p.name for p in (broken / "checkpoints").iterdir())
        return max(int(name) for name in names if name.isdigit())

    before = newest()
    process = start(broken, "--every_steps", 1, "--seconds", 0.2)
    wait_for(lambda: newest() > before, process)
    process.terminate()
    assert "stopped by SIGTERM after step" in finish(process, 42)

    finish(start(broken, "--kill_in_save", "model_ema"), -signal.SIGKILL)
    names = set(os.listdir(broken))
    assert {"model", ".model_ema.partial"} <= names
    assert not {"model_ema", "loss.png"} & names
    finish(start(broken), 0)
    assert sorted(os.listdir(broken)) == sorted(os.listdir(unbroken))
    assert_same_models(broken, unbroken)
    losses = [
        [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (broken, unbroken)
    ]
    assert losses[0] == losses[1]
