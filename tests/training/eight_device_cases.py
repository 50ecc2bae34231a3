"""Checks that need eight devices; `test_eight_devices.py` runs them in a process that has them."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.training.config import CheckpointConfig
from internvideo_jax.training.loop import train
from internvideo_jax.training.metrics import read_metrics
from internvideo_jax.training.state import abstract_state


def losses(toy, workdir, devices, steps=20, **changes):
    # Logged step by step, checkpointed at the end only.
    config = toy.make_config(steps=steps, checkpoint=CheckpointConfig(every_steps=100), **changes)
    stage, data = toy.ToyStage(), toy.batches(config)
    options = {"run_config": toy.run_config(config), "devices": devices}
    assert train(stage, config, data, workdir, **options)
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_first_losses_are_those_of_one_device(toy, tmp_path, accumulation):
    axes = MeshConfig(data=4, fsdp=2) if accumulation == 1 else MeshConfig()
    one = losses(toy, tmp_path / "one", jax.devices()[:1], accumulation=accumulation)
    eight = losses(toy, tmp_path / "eight", None, accumulation=accumulation, mesh=axes)
    assert len(one) == 20
    # Two summation orders of float32.
    np.testing.assert_allclose(one, eight, rtol=1e-5)


def test_a_run_goes_on_on_another_mesh(toy, tmp_path):
    first = toy.make_config(steps=20, checkpoint=CheckpointConfig(every_steps=6, keep=9))
    reference = losses(toy, tmp_path / "reference", None)

    class Stop(Exception):
        pass

    def broken_off(step):
        for index, batch in enumerate(toy.batches(first)(step)):
            if index == 13:
                raise Stop
            yield batch

    options = {"run_config": toy.run_config(first), "devices": jax.devices()[:1]}
    with pytest.raises(Stop):
        train(toy.ToyStage(), first, broken_off, tmp_path / "run", **options)
    resumed = losses(toy, tmp_path / "run", None, mesh=MeshConfig(data=1, fsdp=8))
    assert len(resumed) == 20
    np.testing.assert_allclose(resumed, reference, rtol=1e-5)


def test_batches_must_fit_the_mesh(toy, tmp_path):
    message = r"the 8 devices of data\*fsdp and the 1 processes divide, found 4 rows \(batch_size=4"
    with pytest.raises(ValueError, match=message):
        losses(toy, tmp_path, None, batch_size=4, num_sample=1)


def test_state_and_optimizer_are_sharded(toy, tmp_path):
    config = toy.make_config(mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    mesh = make_mesh(config.mesh)
    state, _ = abstract_state(toy.ToyStage(), config, mesh, DEFAULT_RULES)
    specs = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding.spec
        for path, leaf in jax.tree.leaves_with_path(state)
    }
    kernels = {name: spec for name, spec in specs.items() if name.endswith("blocks/kernel")}
    # Weights, two moments, averages.
    assert len(kernels) == 4
    assert set(kernels.values()) == {P(None, "fsdp", "tensor")}
    assert specs["step"] == P()
