"""Checks that need eight devices; `test_eight_devices.py` runs them in a process that has them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from internvideo_jax import models
from internvideo_jax.evaluation import runner
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import variable_shardings
from internvideo_jax.training.batches import abstract_batch
from internvideo_jax.training.config import CheckpointConfig
from internvideo_jax.training.loop import train
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.metrics import read_metrics
from internvideo_jax.training.stages.alignment import AlignmentStage
from internvideo_jax.training.stages.classify import ClassifyConfig, ClassifyStage
from internvideo_jax.training.stages.pretrain import PretrainConfig
from internvideo_jax.training.state import abstract_state
from tests.small_models import ENCODER, VIDEOMAE, noise
from tests.training import toy_stage as toy


def losses(workdir, devices, steps=20, **changes):
    # Logged step by step, checkpointed near the end only.
    config = toy.make_config(steps=steps, checkpoint=CheckpointConfig(every_steps=19), **changes)
    stage, data = toy.ToyStage(), toy.batches(config)
    options = {"run_config": toy.run_config(config), "devices": devices}
    assert train(stage, config, data, workdir, **options)
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl")]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_first_losses_are_those_of_one_device(tmp_path, accumulation):
    axes = MeshConfig(data=4, fsdp=2) if accumulation == 1 else MeshConfig()
    one = losses(tmp_path / "one", jax.devices()[:1], accumulation=accumulation)
    eight = losses(tmp_path / "eight", None, accumulation=accumulation, mesh=axes)
    assert len(one) == 20
    # Two summation orders of float32.
    np.testing.assert_allclose(one, eight, rtol=1e-5)


def test_a_run_goes_on_on_another_mesh(tmp_path):
    first = toy.make_config(steps=20, checkpoint=CheckpointConfig(every_steps=6, keep=9))
    reference = losses(tmp_path / "reference", None)

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
    resumed = losses(tmp_path / "run", None, mesh=MeshConfig(data=1, fsdp=8))
    assert len(resumed) == 20
    np.testing.assert_allclose(resumed, reference, rtol=1e-5)


def test_batches_must_fit_the_mesh(tmp_path):
    message = r"the 8 devices of data\*fsdp and the 1 processes divide, found 4 rows \(batch_size=4"
    with pytest.raises(ValueError, match=message):
        losses(tmp_path, None, batch_size=4, num_sample=1)


def test_state_and_optimizer_are_sharded(tmp_path):
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


IMAGE = dataclasses.replace(ENCODER, num_frames=1)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=4))


def variables_of(init, mesh, seed):
    """Noise for the variables that `init` makes: whole, and spread over the mesh."""
    with nn.logical_axis_rules(()):
        boxed = jax.eval_shape(init, jax.random.key(0))
    whole = jax.tree.map(np.asarray, noise(init, seed))
    return whole, jax.device_put(whole, variable_shardings(boxed, mesh, DEFAULT_RULES))


def test_targets_and_loss_are_those_of_one_device_in_passes_too(mesh):
    stage = AlignmentStage(
        PretrainConfig(
            models.Stage1StudentConfig(ENCODER, (0, 1), (1,), 32, 8, 32),
            models.TeacherConfig(IMAGE, (0, 1), per_frame=True),
            models.VideoMAETeacherConfig(VIDEOMAE, (1,)),
            mask=MaskConfig(ratio=0.5),
            teacher_batch=8,
        )
    )
    (params, split), (frozen, split_frozen) = (
        variables_of(init, mesh, seed) for seed, init in enumerate((stage.init, stage.init_frozen))
    )
    inputs = abstract_batch(stage, 16, mesh, DEFAULT_RULES)["video"]
    pixels = np.random.default_rng(2).integers(0, 256, inputs.shape, np.uint8)

    def step(params, frozen, batch):
        targets = stage.targets(frozen, batch, jax.random.key(0))
        return targets, stage.loss(params["params"], {}, batch, targets, jax.random.key(1))[0]

    expected = jax.jit(step)(params, frozen, {"video": jnp.asarray(pixels)})
    with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
        batch = {"video": jax.device_put(pixels, inputs.sharding)}
        found = jax.jit(lambda *args: step(*args))(split, split_frozen, batch)
    np.testing.assert_array_equal(found[0]["kept"], expected[0]["kept"])
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], expected[0][name], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    # Every device keeps the features of its own clips.
    assert found[0]["clip_middle"].sharding.spec[0] == ("data", "fsdp")


def test_starting_weights_keep_the_sharding_and_uneven_views_are_filled_up(mesh, tmp_path):
    start = ClassifyStage(ClassifyConfig(models.VideoClassifierConfig(IMAGE, 710)))
    whole, split = variables_of(start.init, mesh, 0)
    with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
        start.save(split, tmp_path / "start")
        model = models.VideoClassifierConfig(ENCODER, 400)
        stage = ClassifyStage(ClassifyConfig(model, initial=str(tmp_path / "start")))
        _, variables = variables_of(stage.init, mesh, 1)
        loaded = stage.load_initial(variables)
        same = jax.tree.map(lambda a, b: a.sharding == b.sharding, loaded, variables)
        assert jax.tree.all(same)
        np.testing.assert_array_equal(
            loaded["params"]["head"]["kernel"], whole["params"]["head"]["kernel"][:, :400]
        )
        assert loaded["params"]["encoder"]["pos_embed"].shape == (1, 9, 32)
        video = np.random.default_rng(2).normal(size=(3, 2, 8, 8, 3)).astype(np.float32)
        views = {"video": video, "index": np.arange(3), "valid": np.ones(3, bool)}
        views |= {name: np.zeros(3, np.int64) for name in ("segment", "crop", "label")}
        (evaluator,) = stage.evaluators().values()
        found = runner.evaluate(evaluator, loaded, [views])
    assert found["clips"] == 3
    assert found == runner.evaluate(evaluator, jax.device_put(loaded, jax.devices()[0]), [views])
