import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.models import video_vit
from internvideo_jax.models.video_vit import VideoViT
from internvideo_jax.nn.position_embedding import resize_position_table
from tests import small_models

CONFIG = dataclasses.replace(
    small_models.ENCODER, image_size=16, num_frames=4, layer_scale_init=0.3
)


def clip(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        # Section 1 of the family's published sizes, less norm and head of a 400-class classifier.
        (video_vit.internvideo2_s14, 23_352_976),
        (video_vit.internvideo2_b14, 89_748_112),
        (video_vit.internvideo2_l14, 309_238_416),
        (video_vit.internvideo2_1b, 1_021_017_744),
        (video_vit.internvideo2_6b, 5_942_044_304),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, parameters):
    shapes = models.abstract_variables(VideoViT(preset()))
    head = 400 * 768 + 400 + 2 * 768
    assert sum(p.size for p in jax.tree.leaves(shapes)) == parameters - head


def test_output_shapes_and_hidden_states(random_variables, run):
    module = VideoViT(CONFIG)
    variables = random_variables(module)
    out = run(
        module,
        variables,
        clip((2, 4, 16, 16, 3)),
        hidden_layers=(0, 1),
        return_pooler_attention=True,
    )
    assert out.tokens.shape == (2, 65, 32)
    assert out.pooled.shape == (2, 8)
    assert out.hidden_states.shape == (2, 2, 65, 32)
    np.testing.assert_array_equal(out.hidden_states[-1], out.tokens)
    np.testing.assert_allclose(out.pooler_attention.sum(-1), 1, rtol=1e-5)


def test_tokens_are_ordered_time_first(random_variables, run):
    """A change in one patch of one frame changes exactly that token's embedding."""
    module = VideoViT(CONFIG)
    variables = random_variables(module)
    a = clip((1, 4, 16, 16, 3))
    b = a.copy()
    b[0, 2, 4:8, 12:16] += 1

    _, state = run(module, variables, np.concatenate([a, b]), capture_intermediates=True)
    embedded = state["intermediates"]["patch_embed"]["__call__"][0]
    changed = np.flatnonzero(np.abs(embedded[0] - embedded[1]).max(-1) > 1e-6)
    assert changed.tolist() == [2 * 16 + 1 * 4 + 3]


def test_all_tokens_kept_equals_no_selection_and_order_is_preserved(random_variables, run):
    module = VideoViT(CONFIG)
    variables = random_variables(module)
    video = clip((2, 4, 16, 16, 3))
    everything = jnp.tile(jnp.arange(65), (2, 1))
    full, selected = run(module, variables, video), run(module, variables, video, everything)
    np.testing.assert_allclose(full.tokens, selected.tokens, atol=1e-5)


def test_dropped_tokens_have_no_influence(random_variables, run):
    module = VideoViT(CONFIG)
    variables = random_variables(module)
    kept = jnp.array([[0, 1, 2]])
    a = clip((1, 4, 16, 16, 3))
    b = a.copy()
    b[:, 1:] += 3
    tokens = run(module, variables, np.concatenate([a, b]), jnp.tile(kept, (2, 1))).tokens
    np.testing.assert_array_equal(tokens[0], tokens[1])


def test_position_tables_are_resized_to_the_clip(random_variables, run):
    variables = random_variables(VideoViT(CONFIG))
    out = run(VideoViT(CONFIG), variables, clip((1, 6, 24, 24, 3)))
    assert out.tokens.shape == (1, 1 + 6 * 6 * 6, 32)
    larger = dataclasses.replace(CONFIG, num_frames=6, image_size=24)
    params = dict(variables["params"])
    params["pos_embed"] = resize_position_table(params["pos_embed"], (4, 4, 4), (6, 6, 6))
    want = run(VideoViT(larger), {"params": params}, clip((1, 6, 24, 24, 3)))
    np.testing.assert_allclose(out.tokens, want.tokens, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 18, 16), (4, 16, 17), (3, 16, 16), (0, 16, 16)])
def test_clip_that_the_grid_does_not_cover_is_named(size):
    shown = "{} frames of {}x{} pixels".format(*size)
    message = f"tubelet size 2 .* patch size 4, found a clip of {shown}"
    with pytest.raises(ValueError, match=message):
        video_vit.token_grid(size, 2, 4)


def test_missing_batch_axis_is_named(random_variables, run):
    module = VideoViT(CONFIG)
    variables = random_variables(module)
    with pytest.raises(ValueError, match=r"\[B, T, H, W, 3\], found shape \(4, 16, 16, 3\)"):
        run(module, variables, jnp.zeros((4, 16, 16, 3)))


def test_bfloat16_stays_close_to_float32(random_variables, run):
    module = VideoViT(CONFIG)
    variables = random_variables(module)
    half = VideoViT(dataclasses.replace(CONFIG, dtype="bfloat16"))
    video = clip((2, 4, 16, 16, 3))
    a, b = run(module, variables, video), run(half, variables, video)
    assert b.tokens.dtype == b.pooled.dtype == jnp.bfloat16
    assert float(jnp.abs(a.tokens - b.tokens).max() / jnp.abs(a.tokens).max()) < 0.05


def test_options_add_and_remove_parameters():
    plain = models.abstract_variables(VideoViT(CONFIG))["params"]["blocks"]
    assert set(plain["attn"]["qkv"]) == {"kernel"}
    config = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=False, layer_scale_init=None)
    other = models.abstract_variables(VideoViT(config))["params"]["blocks"]
    assert other["attn"]["qkv"]["bias"].shape == (2, 3, 2, 16)
    assert "q_norm" not in other["attn"]
    assert "ls1" not in other


@pytest.mark.parametrize("name", [n for n in small_models.CONFIGS if "videomae" not in n])
def test_every_composite_has_an_encoder(name, random_variables):
    module = models.build(small_models.CONFIGS[name])
    variables = random_variables(module)
    encoder, own = models.video_encoder(module, variables)
    assert encoder.config == small_models.ENCODER
    params = variables["params"]
    assert own["params"] is (params if name == "video_vit" else params["encoder"])


def test_encode_of_many_clips_is_the_encoder_of_each(random_variables):
    module = VideoViT(CONFIG)
    variables = random_variables(module)
    video = clip((3, 4, 16, 16, 3))
    kept = jnp.array([[0, 1, 5], [0, 2, 3], [0, 4, 6]])
    options = {"hidden_layers": (0, 1), "return_pooler_attention": True}
    out = jax.jit(lambda *x: models.encode(module, variables, *x, **options))(video, kept)
    each = jax.jit(lambda *x: module.apply(variables, *x, **options))
    for i in range(3):
        want = each(video[i : i + 1], kept[i : i + 1])
        np.testing.assert_allclose(out.tokens[i], want.tokens[0], atol=1e-6)
        np.testing.assert_allclose(out.pooled[i], want.pooled[0], atol=1e-6)
        np.testing.assert_allclose(out.hidden_states[:, i], want.hidden_states[:, 0], atol=1e-6)
        np.testing.assert_allclose(out.pooler_attention[i], want.pooler_attention[0], atol=1e-6)


def test_encode_names_a_model_without_video_encoder():
    module = models.VideoMAE(small_models.VIDEOMAE)
    with pytest.raises(ValueError, match="found VideoMAE"):
        models.encode(module, {"params": {}}, jnp.zeros((1, 4, 8, 8, 3)))
