import numpy as np
import pytest

from internvideo_jax.config import from_dict, to_dict
from internvideo_jax.parallel.mesh import MeshConfig
from internvideo_jax.training.config import (
    Lengths,
    OptimizerConfig,
    TrainConfig,
    differing_fields,
)


def config(**changes):
    fields = {"batch_size": 256, "optimizer": {"lr": 1e-3}, "steps": 100}
    return from_dict(TrainConfig, fields | changes)


def test_a_config_survives_json():
    one = config(ema_decay=0.99, mesh={"data": 2, "fsdp": 4}, warmup_epochs=1.5)
    assert from_dict(TrainConfig, to_dict(one)) == one
    assert one.optimizer == OptimizerConfig(lr=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "steps or epochs, found neither"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"accumulation": 3}, "256 rows that divide into accumulation=3"),
        ({"ema_decay": 1.0}, r"ema_decay: expected a number in \(0, 1\)"),
        ({"checkpoint": {"keep": 0}}, "keep: expected at least 1"),
        ({"eval_every": 0}, "eval_every: expected at least 1"),
        ({"step": 3}, "unknown field 'step' of TrainConfig; did you mean 'steps'"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_epochs_become_steps_as_upstream_counts_them():
    epochs = config(steps=None, epochs=3.0, warmup_epochs=0.5)
    assert epochs.lengths(25) == Lengths(75, 12)
    assert config(warmup_epochs=2.0).lengths(25) == Lengths(100, 50)
    assert config(warmup_steps=7).lengths() == Lengths(100, 7)
    with pytest.raises(ValueError, match="number of steps per epoch"):
        epochs.lengths()
    # A recipe's epochs give way to a number of steps.
    steps = config(steps=40, epochs=3.0, warmup_steps=2, warmup_epochs=0.5)
    assert steps.lengths() == Lengths(40, 2)
    assert epochs.counts_epochs
    assert not steps.counts_epochs
    with pytest.raises(ValueError, match="found 125 warm-up steps of 100 .*25 steps per epoch"):
        config(warmup_epochs=5.0).lengths(25)


@pytest.mark.parametrize(
    ("every", "steps", "found"),
    [(200, 1000, 200), (200, 201, 200), (200, 200, 50), (200, 10, 3), (200, 1, 1), (2, 4, 2)],
)
def test_runs_of_few_steps_are_checkpointed_four_times(every, steps, found):
    some = config(steps=steps, checkpoint={"every_steps": every})
    assert some.checkpoint_every(some.lengths()) == found


def test_rates_are_what_the_config_says_whatever_the_batch():
    rates = {"lr": 4e-3, "min_lr": 4e-4, "warmup_lr": 4e-5}
    for batch_size in (64, 512):
        train = config(batch_size=batch_size, num_sample=2, optimizer=rates, warmup_steps=10)
        values = np.asarray(train.schedule(train.lengths())(np.arange(101)))
        np.testing.assert_allclose(values[[0, 9, 10, 100]], [4e-5, 4e-3, 4e-3, 4e-4], rtol=1e-5)


def test_fields_that_may_change_and_those_that_may_not():
    old = {
        "train": to_dict(config()),
        "data": {"root": "a", "workers": 2, "shards": None, "mixture": []},
        "eval_data": {"segments": 4},
    }
    free = {
        "train": to_dict(
            config(
                log_every=3, eval_every=5, checkpoint={"keep": 9}, max_bad_steps=1, hang_timeout=9
            )
        ),
        "data": {"root": "b", "workers": 0, "shards": None, "mixture": []},
        "eval_data": None,
    }
    free["train"]["mesh"] = to_dict(MeshConfig(fsdp=2))
    assert differing_fields(old, free) == []
    changed = {
        "train": to_dict(config(steps=200, optimizer={"lr": 2e-3})),
        "data": {"root": "a", "workers": 2, "mixture": [], "flip": True},
    }
    assert differing_fields(old, changed) == [
        "data.flip: absent in the checkpoint, True now",
        "data.shards: None in the checkpoint, absent now",
        "train.optimizer.lr: 0.001 in the checkpoint, 0.002 now",
        "train.steps: 100 in the checkpoint, 200 now",
    ]
    # A longer name is not free because a prefix is.
    old, new = ({"data": {"roots": value, "workers_seed": value}} for value in (1, 2))
    assert len(differing_fields(old, new)) == 2
