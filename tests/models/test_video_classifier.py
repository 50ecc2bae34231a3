import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.models.video_classifier import VideoClassifier, VideoClassifierConfig
from tests import small_models

ENCODER = dataclasses.replace(small_models.ENCODER, depth=1)


@pytest.mark.parametrize("norm", ["kaiming_bn", "ln"])
@pytest.mark.parametrize(
    ("method", "features"),
    [("cls_avg1", 64), ("cls_avgN", 24), ("cls_avg1_proj", 72), ("cls_avgN_proj", 32)],
)
def test_concatenated_features(method, features, norm):
    config = VideoClassifierConfig(ENCODER, 5, "concat", method, norm)
    module = VideoClassifier(config)
    video = jnp.ones((3, 2, 8, 8, 3))
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), video)
    assert out.logits.shape == (3, 5)
    assert out.features.shape == (3, features)
    assert ("batch_stats" in variables) == (norm != "ln")
    assert ("down" in variables["params"]) == ("avgN" in method)


def test_batch_statistics_change_only_in_training(random_variables, run):
    module = VideoClassifier(VideoClassifierConfig(ENCODER, 5, "concat"))
    variables = random_variables(module)
    video = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 3))
    _, state = run(module, variables, video, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    _, state = run(module, variables, video, deterministic=False, mutable=["batch_stats"])
    assert not np.allclose(state["batch_stats"]["down_norm"]["mean"], 0)


def test_attentive_probe_starts_as_the_linear_head(random_variables, run):
    linear = VideoClassifier(VideoClassifierConfig(ENCODER, 5))
    attentive = VideoClassifier(VideoClassifierConfig(ENCODER, 5, "attentive"))
    variables = nn.unbox(jax.jit(attentive.init)(jax.random.key(0), jnp.zeros((1, 2, 8, 8, 3))))
    shared = {k: v for k, v in variables["params"].items() if not k.startswith("extra")}
    video = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 3))
    np.testing.assert_allclose(
        run(attentive, variables, video).logits,
        run(linear, {"params": shared}, video).logits,
        atol=1e-7,
    )


def test_head_starts_small_and_dropout_acts_in_training_only(random_variables, run):
    config = VideoClassifierConfig(ENCODER, 400, dropout_rate=0.5)
    module = VideoClassifier(config)
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2, 8, 8, 3))))
    assert np.asarray(variables["params"]["head"]["kernel"]).std() == pytest.approx(2e-5, rel=0.1)
    video = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 3))
    plain = run(module, variables, video).logits
    dropped = module.apply(
        variables, video, deterministic=False, rngs={"dropout": jax.random.key(1)}
    ).logits
    assert not np.allclose(plain, dropped)


def test_logits_are_float32_for_half_precision_encoders(random_variables, run):
    encoder = dataclasses.replace(ENCODER, dtype="bfloat16")
    module = VideoClassifier(VideoClassifierConfig(encoder, 5))
    out = run(module, random_variables(module), jnp.ones((1, 2, 8, 8, 3)))
    assert out.logits.dtype == jnp.float32
    assert out.pooled.dtype == jnp.bfloat16
