"""Stages over eight devices; `test_eight_devices.py` runs these in a process that has them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.evaluation import runner
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import variable_shardings
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.stages.alignment import AlignmentStage
from internvideo_jax.training.stages.classify import ClassifyConfig, ClassifyStage
from internvideo_jax.training.stages.pretrain import PretrainConfig
from internvideo_jax.training.step import abstract_batch
from tests.small_models import ENCODER, VIDEOMAE, noise

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
