import dataclasses

import jax
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.models.beats import Beats, beats_iter3_plus, relative_buckets
from tests.small_models import BEATS as CONFIG

SOUND = np.random.default_rng(0).normal(size=(2, 21, 8)).astype(np.float32)


def test_the_preset_has_the_published_number_of_parameters():
    shapes = models.abstract_variables(Beats(beats_iter3_plus()))
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 90_311_792
    assert beats_iter3_plus().num_tokens == 248


def test_tokens_run_along_time_first(random_variables, run):
    model = Beats(CONFIG)
    variables = random_variables(model)
    patch, last_frame = SOUND.copy(), SOUND.copy()
    patch[:, 4:8, 4:] += 1
    last_frame[:, -1] += 1
    out, state = run(
        model,
        variables,
        np.concatenate([SOUND, patch, last_frame]),
        hidden_layers=(0, 1),
        capture_intermediates=True,
        mutable="intermediates",
    )
    assert out.tokens.shape == (6, 10, 16)
    np.testing.assert_array_equal(out.hidden_states[-1], out.tokens)
    np.testing.assert_allclose(out.pooled, out.tokens.mean(1), rtol=1e-5, atol=1e-6)
    embedded = state["intermediates"]["patch_embed"]["__call__"][0]
    assert np.flatnonzero(np.abs(embedded[:2] - embedded[2:4]).max((0, 2))).tolist() == [3]
    # No patch covers the last frame.
    np.testing.assert_allclose(out.tokens[:2], out.tokens[4:], rtol=1e-5, atol=1e-6)


def test_options_add_and_remove_parameters():
    changes = {"num_buckets": 0, "conv_size": 5, "patch_width": 16, "patch_bias": True}
    params = models.abstract_variables(Beats(dataclasses.replace(CONFIG, **changes)))["params"]
    assert {"relative_bias", "patch_proj"}.isdisjoint(params)
    assert set(params["patch_embed"]) == {"kernel", "bias"}
    assert params["pos_conv"]["v"].shape == (5, 4, 16)


def test_norms_may_come_first(random_variables, run):
    model = Beats(dataclasses.replace(CONFIG, norm_first=True))
    out = run(model, random_variables(model), SOUND, hidden_layers=(1,))
    assert np.abs(out.tokens - out.hidden_states[-1]).max() > 1e-2


def test_buckets_are_exact_when_near_and_ever_longer_when_far():
    offsets = np.array([-900, -799, -80, -79, -1, 0, 1, 79, 80, 900])
    buckets = relative_buckets(offsets, 320, 800)
    assert buckets.tolist() == [159, 159, 80, 79, 1, 0, 161, 239, 240, 319]


def test_layers_and_decay_follow_the_released_groups():
    model = Beats(CONFIG)
    assert list(model.layer_of("blocks/attn/q/kernel")) == [1, 2]
    assert model.layer_of("pos_conv/v") == model.layer_of("norm/scale") == 0
    assert model.is_decayed("pos_conv/g")
    assert model.is_decayed("blocks/attn/gate_scale")
    assert not model.is_decayed("blocks/attn_norm/scale")


def test_what_does_not_fit_is_refused(random_variables):
    with pytest.raises(ValueError, match="conv_groups"):
        dataclasses.replace(CONFIG, conv_groups=3)
    with pytest.raises(ValueError, match="4 frames and 4 mel bins"):
        Beats(CONFIG).apply(random_variables(Beats(CONFIG)), SOUND[:, :3])
