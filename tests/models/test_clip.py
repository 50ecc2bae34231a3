"""CLIP's text tower, ViCLIP's video tower, and both together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.models.clip_text import ClipText
from internvideo_jax.models.clip_vision import ClipVision, fit_temporal_positions
from internvideo_jax.models.viclip import ViClip
from internvideo_jax.nn.mlp import activate
from internvideo_jax.training.masking import MaskConfig
from tests.small_models import CLIP_TEXT, CLIP_VISION, STAGE2, VICLIP

# The last id is a text's end.
IDS = np.array([[28, 3, 7, 29, 0, 0, 0, 0], [28, 5, 29, 0, 0, 0, 0, 0]])
VIDEO = np.random.default_rng(0).normal(size=(2, 2, 8, 8, 3)).astype(np.float32)


def difference(one, other):
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def test_quick_gelu_is_clips():
    x = jnp.array([-3.0, -0.5, 0.0, 2.0])
    np.testing.assert_allclose(activate(x, "gelu_quick"), x / (1 + np.exp(-1.702 * x)), rtol=1e-6)


@pytest.mark.parametrize("is_causal", [True, False])
def test_what_follows_a_texts_end_is_seen_only_by_bidirectional_towers(
    is_causal, random_variables, run
):
    module = ClipText(dataclasses.replace(CLIP_TEXT, is_causal=is_causal))
    variables = random_variables(module)
    changed = np.where((IDS == 0), 9, IDS)
    out = run(module, variables, np.concatenate([IDS, changed]))
    moved = difference(out.pooled[:2], out.pooled[2:])
    assert (moved < 1e-6) == is_causal
    # The end is where the largest id stands first.
    expected = out.tokens[np.arange(2), [3, 2]] @ variables["params"]["projection"]
    np.testing.assert_allclose(out.pooled[:2], expected, atol=1e-5)


def test_layers_of_several_sizes_are_stacks_of_their_own(random_variables, run):
    config = dataclasses.replace(
        CLIP_TEXT, depth=4, heads_by_layer=(2, 4, 4, 4), mlp_dims_by_layer=(64, 32, 32, 64)
    )
    assert [(r.name, r.start, r.end) for r in config.stacks] == [
        ("blocks_0", 0, 1),
        ("blocks_1", 1, 3),
        ("blocks_3", 3, 4),
    ]
    module = ClipText(config)
    variables = random_variables(module)
    out = run(module, variables, IDS, hidden_layers=(0, 2, 3))
    assert out.hidden_states.shape == (3, 2, 8, 16)
    norm = variables["params"]["norm"]
    last = out.hidden_states[-1]
    normalized = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out.tokens, normalized * norm["scale"] + norm["bias"], atol=1e-5)
    assert module.layer_of("blocks_1/mlp/fc1/kernel").tolist() == [2, 3]
    # The same tower, in as many stacks as it has sizes or in one.
    same = dataclasses.replace(CLIP_TEXT, heads_by_layer=(2, 2), mlp_dims_by_layer=(64, 64))
    assert [run.name for run in same.stacks] == ["blocks"]


def test_texts_of_other_lengths_have_the_first_positions_or_all_of_them_resized(
    random_variables, run
):
    first = ClipText(CLIP_TEXT)
    variables = random_variables(first)
    resized = ClipText(dataclasses.replace(CLIP_TEXT, other_lengths="resized"))
    short = IDS[:, :4]
    whole = run(first, variables, IDS)
    np.testing.assert_allclose(run(first, variables, short).pooled, whole.pooled, atol=1e-5)
    assert difference(run(resized, variables, short).pooled, whole.pooled) > 1e-3
    long = np.pad(IDS, [(0, 0), (0, 2)])
    assert run(resized, variables, long).tokens.shape == (2, 10, 16)
    with pytest.raises(ValueError, match="at most 8 tokens, found 10"):
        run(first, variables, long)


def test_only_positions_tell_the_order_of_frames(random_variables, run):
    module = ClipVision(CLIP_VISION)
    variables = random_variables(module)
    assert difference(*(run(module, variables, v).pooled for v in (VIDEO, VIDEO[:, ::-1]))) > 1e-3
    blind = ClipVision(dataclasses.replace(CLIP_VISION, temporal_positions=False))
    params = {n: x for n, x in variables["params"].items() if n != "pos_embed_temporal"}
    outputs = (run(blind, {"params": params}, v).pooled for v in (VIDEO, VIDEO[:, ::-1]))
    assert difference(*outputs) < 1e-5


def test_positions_are_fitted_to_frames_as_upstreams_loader_does():
    table = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
    assert fit_temporal_positions(table, 2).ravel().tolist() == [0, 1]
    assert fit_temporal_positions(table, 1).ravel().tolist() == [1.5]
    longer = fit_temporal_positions(table, 8).ravel()
    np.testing.assert_allclose(longer[:4], [0, 0.25, 0.75, 1.25])
    assert fit_temporal_positions(table, 4) is table


def test_an_image_is_a_clip_of_one_frame_and_sizes_may_differ(random_variables, run):
    module = ClipVision(CLIP_VISION)
    variables = random_variables(module)
    out = run(module, variables, VIDEO[:, :1])
    assert out.tokens.shape == (2, 5, 32)
    mean = variables["params"]["pos_embed_temporal"].mean(1, keepdims=True)
    params = variables["params"] | {"pos_embed_temporal": mean}
    image = ClipVision(dataclasses.replace(CLIP_VISION, num_frames=1))
    np.testing.assert_allclose(
        out.pooled, run(image, {"params": params}, VIDEO[:, :1]).pooled, atol=1e-5
    )
    assert run(module, variables, np.zeros((1, 3, 12, 16, 3))).tokens.shape == (1, 37, 32)


def test_patches_are_dropped_at_random(random_variables, run):
    module = ViClip(VICLIP)
    variables = random_variables(module)

    def embedding(*kept):
        return run(module, variables, VIDEO, *kept, method="encode_video").embedding

    whole = embedding()
    everything = np.tile(np.arange(9), (2, 1))
    np.testing.assert_allclose(embedding(everything), whole, atol=1e-5)
    kept = MaskConfig("random", 0.9).draw(jax.random.key(0), 2, VICLIP.vision.grid, False)
    assert kept.shape == (2, 2)
    assert difference(embedding(kept), whole) > 1e-3


def test_cosines_are_those_of_the_embeddings(random_variables, run):
    module = ViClip(VICLIP)
    variables = random_variables(module)
    video = run(module, variables, VIDEO, method="encode_video").embedding
    text = run(module, variables, IDS[:1], method="encode_text").embedding
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.asarray, (video, text))]
    cosines = run(module, variables, VIDEO, IDS[:1])
    assert cosines.shape == (2, 1)
    np.testing.assert_allclose(cosines, units[0] @ units[1].T, atol=1e-5)


def test_the_temperature_has_a_lower_bound_and_a_gradient_below_it():
    module = ViClip(VICLIP)

    def scale(temperature):
        return module.apply({"params": {"temperature": temperature}}, method="cosine_scale")

    for value, expected in ((0.02, 50.0), (0.001, 100.0)):
        np.testing.assert_allclose(scale(jnp.float32(value)), expected, rtol=1e-6)
    assert jax.grad(scale)(jnp.float32(0.001)) < 0


def test_towers_of_clips_are_found_in_models_of_several(random_variables):
    for config, tower, path in (
        (VICLIP, VICLIP.vision, ("vision",)),
        (STAGE2["visual"], STAGE2["visual"].vision.encoder, ("vision", "encoder")),
    ):
        module = models.build(config)
        variables = random_variables(module)
        encoder, own = models.video_encoder(module, variables)
        assert encoder.config == tower
        params = variables["params"]
        for name in path:
            params = params[name]
        assert own["params"] is params
    out = models.encode(models.build(VICLIP), random_variables(models.build(VICLIP)), VIDEO)
    assert out.pooled.shape == (2, 6)
    assert out.hidden_states.shape == (0, 2, 9, 32)


def test_decay_and_layers_are_those_of_the_towers():
    module = ViClip(VICLIP)
    assert not module.is_decayed("temperature")
    assert module.is_decayed("vision/projection")
    assert module.is_decayed("text/token_embed/embedding")
    assert not module.is_decayed("vision/pos_embed_temporal")
    assert module.layer_of("vision/blocks/attn/qkv/kernel").tolist() == [1, 2]
    assert module.layer_of("vision/pos_embed_temporal") == 0
    assert module.layer_of("text/blocks/attn/qkv/kernel") == module.last_layer == 3
