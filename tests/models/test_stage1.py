import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from internvideo_jax import models
from internvideo_jax.models import stage1, video_vit
from tests import small_models

ENCODER = dataclasses.replace(small_models.ENCODER, depth=3)
KEPT = jnp.array([[0, 2, 5, 8], [0, 1, 3, 4]])


@pytest.mark.parametrize(
    ("args", "layers"),
    [
        ((40, 6), (34, 35, 36, 37, 38, 39)),
        ((40, 6, 3.34), (23, 26, 29, 33, 36, 39)),
        ((4, 2, 2), (1, 3)),
        ((12, 1), (11,)),
    ],
)
def test_aligned_layers(args, layers):
    assert stage1.aligned_layers(*args) == layers


@pytest.mark.parametrize("final", [6, 0])
def test_pretraining_student_outputs(final, random_variables, run):
    module = models.Stage1Student(models.Stage1StudentConfig(ENCODER, (0, 2), (1,), 12, final, 20))
    video = jax.random.normal(jax.random.key(1), (2, 2, 8, 8, 3))
    out = run(module, random_variables(module), video, KEPT)
    assert out.clip_middle.shape == (2, 2, 4, 12)
    assert out.mae.shape == (1, 2, 3, 20)
    assert out.clip_final.shape == (2, final or 8)
    for features in (out.clip_middle, out.mae, *([out.clip_final] if final else [])):
        np.testing.assert_allclose(jnp.linalg.norm(features, axis=-1), 1, rtol=1e-5)
    if not final:
        np.testing.assert_array_equal(out.clip_final, out.pooled)


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_distillation_student_has_no_mae_branch(decoder, random_variables, run):
    config = models.DistillStudentConfig(ENCODER, (0, 2), 12, 6, decoder, normalization="none")
    module = models.DistillStudent(config)
    variables = random_variables(module)
    out = run(module, variables, jnp.ones((2, 2, 8, 8, 3)), KEPT)
    assert out.mae is None
    assert out.clip_middle.shape == (2, 2, 4, 12)
    assert not np.allclose(jnp.linalg.norm(out.clip_middle, axis=-1), 1)
    assert set(variables["params"]["final_clip_decoder"]) == (
        {"fc1", "fc2", "norm"} if decoder == "mlp" else {"head", "norm"}
    )


def test_each_decoder_reads_its_own_layer(random_variables):
    """A change of the last block, or of the last decoder, shows in the last of two layers alone."""
    module = models.DistillStudent(models.DistillStudentConfig(ENCODER, (0, 2), 12, 6))
    params = random_variables(module)["params"]
    video = jax.random.normal(jax.random.key(1), (2, 2, 8, 8, 3))
    decode = jax.jit(lambda params: module.apply({"params": params}, video, KEPT).clip_middle)
    want = decode(params)
    for part in ("encoder/blocks/mlp", "clip_decoder"):
        changed = flatten_dict(params, sep="/")
        kernel = changed[f"{part}/fc2/kernel"]
        changed[f"{part}/fc2/kernel"] = np.concatenate([kernel[:-1], 2 * kernel[-1:]])
        got = decode(unflatten_dict(changed, sep="/"))
        np.testing.assert_array_equal(got[0], want[0])
        assert np.abs(got[1] - want[1]).max() > 1e-4


def test_released_student_keeps_417_tokens_and_distillation_411():
    encoder = video_vit.internvideo2_1b()
    student = models.Stage1Student(stage1.stage1_student(encoder))
    assert student.example_inputs(3)[1].shape == (3, 417)
    distilled = models.DistillStudent(stage1.distill_student(video_vit.internvideo2_s14()))
    assert distilled.example_inputs()[1].shape == (1, 411)
