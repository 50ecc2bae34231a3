from operator import attrgetter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from internvideo_jax.config import to_dict
from internvideo_jax.launch.compilation.tasks import (
    forward_task,
    gradient_task,
    make_module,
    train_step_task,
)
from internvideo_jax.models.stage1 import DistillStudentConfig
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.training.config import OptimizerConfig, TrainConfig
from internvideo_jax.training.stages.alignment import AlignmentStage
from internvideo_jax.training.stages.distill import DistillConfig
from tests.small_models import CONFIGS, ENCODER

KINDS = ("video_vit", "video_classifier", "stage1_student", "distill_student", "videomae")
BATCH = ("data", "fsdp")


def model(architecture):
    config = to_dict(CONFIGS[architecture])
    return ConfigDict({"architecture": architecture, "config": config})


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("architecture", KINDS)
def test_gradients_have_the_shapes_and_shardings_of_the_parameters(architecture, mesh):
    module = make_module(model(architecture))
    assert module.config == CONFIGS[architecture]
    gradient, arguments = gradient_task(module, mesh, batch_size=4)
    loss, grads = gradient.eval_shape(*arguments)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert "batch_stats" not in grads
    for name in ("shape", "sharding"):
        found, expected = (jax.tree.map(attrgetter(name), x) for x in (grads, arguments[0]))
        assert found == expected


@pytest.mark.parametrize(
    ("architecture", "terms"),
    [
        ("stage1_student", {"clip_middle": 1, "clip_final": 0, "mae": 1}),
        ("distill_student", {"clip_middle": 1, "clip_final": 0}),
        ("video_vit", {}),
    ],
)
def test_students_get_float32_targets_split_over_the_batch(architecture, terms, mesh):
    _, (_, _, targets, *_) = gradient_task(make_module(model(architecture)), mesh, batch_size=4)
    assert targets.keys() == terms.keys()
    for name, batch_axis in terms.items():
        assert targets[name].dtype == jnp.float32
        assert targets[name].shape[batch_axis] == 4
        assert targets[name].sharding.spec[batch_axis] == BATCH


def test_inputs_and_outputs_of_the_forward_pass_are_split_over_the_batch(mesh):
    forward, arguments = forward_task(make_module(model("teacher")), mesh, batch_size=4)
    variables, video = arguments
    assert video.shape == (4, 2, 8, 8, 3)
    assert video.sharding.spec == P(BATCH, None, None, None, None)
    qkv = variables["params"]["encoder"]["blocks"]["attn"]["qkv"]["kernel"]
    assert qkv.sharding.spec == P(None, "fsdp", None, "tensor", None)
    output = forward.eval_shape(*arguments)
    assert output.middle.sharding.spec == P(None, BATCH, None, None)
    assert output.final.sharding.spec == P(BATCH, None)


def test_the_training_step_takes_state_teachers_and_a_batch_of_all_rows(mesh):
    stage = AlignmentStage(
        DistillConfig(
            DistillStudentConfig(ENCODER, (0, 1), ENCODER.width, ENCODER.pooled_dim),
            CONFIGS["teacher"],
        )
    )
    config = TrainConfig(4, OptimizerConfig(1e-3), epochs=2, num_sample=2, ema_decay=0.9)
    step, arguments = train_step_task(stage, config, mesh, config.rows)
    state, fixed, frozen, batch = arguments
    assert fixed == {}
    assert frozen.keys() == {"teacher"}
    assert batch["video"].shape == (8, 2, 8, 8, 3)
    assert state.ema.keys() == state.params.keys()
    new, metrics = jax.eval_shape(step, *arguments)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert {"loss", "clip_middle", "clip_final", "grad_norm"} <= metrics.keys()


def test_unknown_architectures_and_fields_are_refused():
    with pytest.raises(ValueError, match="found 'video_vitt'; did you mean 'video_vit'"):
        make_module(ConfigDict({"architecture": "video_vitt", "config": {}}))
    config = model("video_vit")
    config.config.wide = 3
    with pytest.raises(ValueError, match="config.model.config: unknown field 'wide'"):
        make_module(config)
