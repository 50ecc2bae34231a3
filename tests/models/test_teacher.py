import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax import models
from internvideo_jax.models import teacher
from internvideo_jax.models.video_vit import internvideo2_1b
from internvideo_jax.models.videomae import AttentionOverHeads
from tests import small_models

IMAGE = dataclasses.replace(small_models.ENCODER, num_frames=1)
MAE = small_models.VIDEOMAE


def test_released_teachers_align_the_published_layers():
    assert teacher.internvl_teacher().layers == (42, 43, 44, 45, 46, 47)
    assert teacher.videomae_teacher().layers == (36, 37, 38, 39)
    assert teacher.internvideo2_teacher(internvideo2_1b()).layers == (23, 26, 29, 33, 36, 39)


def test_image_teacher_averages_class_tokens_before_normalising(random_variables, run):
    config = models.TeacherConfig(IMAGE, (0, 1), per_frame=True, normalization="none")
    module = models.Teacher(config)
    variables = random_variables(module)
    video = jax.random.normal(jax.random.key(1), (2, 3, 8, 8, 3))
    out = run(module, variables, video)
    assert out.middle.shape == (2, 2, 1 + 3 * 4, 32)
    assert out.attention.shape == (6, 4)
    assert (out.attention.sum(-1) < 1).all()
    by_frame = jax.jit(module.apply)
    frames = [by_frame(variables, video[:, t : t + 1]) for t in range(3)]
    mean = sum(f.middle[:, :, 0] for f in frames) / 3
    np.testing.assert_allclose(out.middle[:, :, 0], mean, atol=1e-5)
    np.testing.assert_allclose(out.middle[:, :, 5:9], frames[1].middle[:, :, 1:], atol=1e-5)
    np.testing.assert_allclose(out.final, sum(f.final for f in frames) / 3, atol=1e-5)
    normalised = models.Teacher(dataclasses.replace(config, normalization="l2"))
    unit = run(normalised, variables, video).middle
    want = out.middle / jnp.linalg.norm(out.middle, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit, want, atol=1e-5)


def test_video_teacher_gives_one_attention_row_per_clip(random_variables, run):
    encoder = dataclasses.replace(IMAGE, num_frames=3)
    module = models.Teacher(models.TeacherConfig(encoder, (1,)))
    out = run(module, random_variables(module), jnp.ones((2, 3, 8, 8, 3)))
    assert out.attention.shape == (2, 12)
    assert out.middle.shape == (1, 2, 13, 32)


def test_videomae_last_layer_is_normalised_by_the_final_norm(random_variables, run):
    module = models.VideoMAE(MAE)
    variables = random_variables(module)
    video = jax.random.normal(jax.random.key(1), (1, 4, 8, 8, 3))
    out = run(module, variables, video, hidden_layers=(0, 1))
    np.testing.assert_array_equal(out.hidden_states[1], out.tokens)
    params = variables["params"]["norm"]
    np.testing.assert_allclose(
        ((out.tokens - params["bias"]) / params["scale"]).std(-1), 1, rtol=1e-3
    )
    assert run(module, variables, video).hidden_states.shape == (0, 1, 8, 32)


def test_videomae_learned_positions_start_from_the_fixed_table(random_variables, run):
    learned = models.VideoMAE(dataclasses.replace(MAE, learned_position=True))
    variables = nn.unbox(jax.jit(learned.init)(jax.random.key(0), jnp.zeros((1, 4, 8, 8, 3))))
    assert variables["params"]["pos_embed"].shape == (1, 8, 32)
    fixed = {"params": {k: v for k, v in variables["params"].items() if k != "pos_embed"}}
    video = jax.random.normal(jax.random.key(1), (1, 4, 8, 8, 3))
    np.testing.assert_allclose(
        run(learned, variables, video).tokens,
        run(models.VideoMAE(MAE), fixed, video).tokens,
        atol=1e-6,
    )


def test_attention_over_heads_is_what_a_transposed_kernel_call_computes():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    module = AttentionOverHeads(num_heads=2, qk_norm=False)
    variables = nn.unbox(module.init(jax.random.key(1), x))
    params = variables["params"]
    q, k, v = np.einsum("bnd,dshe->sbnhe", x, params["qkv"]["kernel"])
    logits = np.einsum("bnhd,bngd->bnhg", q, k) / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    per_token = np.einsum("bnhg,bngd->bhnd", weights, v)
    scrambled = per_token.reshape(2, 6, 2, 4)
    want = np.einsum("bnhd,hde->bne", scrambled, params["proj"]["kernel"])
    np.testing.assert_allclose(module.apply(variables, x), want, atol=1e-5)
