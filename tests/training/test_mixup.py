import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_jax.training.mixup import (
    MixConfig,
    MixDraw,
    cutmix_box,
    draw_mix,
    mix_targets,
    mix_video,
)

VIDEO = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 6, 8, 3)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 2])
SIZE = (6, 8)


@given(weight=st.floats(0, 1, width=32), y=st.integers(0, 11), x=st.integers(0, 6))
@settings(max_examples=50)
def test_boxes_lie_in_the_frame_and_weights_are_their_rest(weight, y, x) -> None:
    (y0, y1, x0, x1), corrected = cutmix_box(jnp.float32(weight), jnp.array([y, x]), (12, 7))
    assert 0 <= y0 <= y <= y1 <= 12
    assert 0 <= x0 <= x <= x1 <= 7
    np.testing.assert_allclose(corrected, 1 - (y1 - y0) * (x1 - x0) / 84, atol=1e-6)
    # Clipping and rounding down only ever shrink the box.
    assert corrected >= weight - 1e-5


def draws(config: MixConfig, count: int = 400) -> MixDraw:
    keys = jax.random.split(jax.random.key(7), count)
    return jax.jit(jax.vmap(lambda key: draw_mix(key, config, SIZE)))(keys)


def test_sampled_draws_mix_both_kinds() -> None:
    sampled = draws(MixConfig())
    cut = np.asarray(sampled.use_cutmix)
    # Five standard deviations of 400 coin tosses.
    assert abs(cut.mean() - 0.5) < 0.125
    box = np.asarray(sampled.box)
    assert not box[~cut].any()
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    np.testing.assert_allclose(sampled.weight[cut], 1 - area[cut] / 48, atol=1e-6)
    # Beta(0.8, 0.8): mean 1/2, variance 1/(4 * 2.6).
    weights = np.asarray(sampled.weight)[~cut]
    np.testing.assert_allclose(weights.mean(), 0.5, atol=0.11)
    np.testing.assert_allclose(weights.var(), 1 / 10.4, atol=0.03)


@pytest.mark.parametrize(
    ("change", "kinds"),
    [({"mixup_alpha": 0.0}, {True}), ({"cutmix_alpha": 0.0}, {False})],
)
def test_either_kind_can_be_left_out(change, kinds) -> None:
    sampled = draws(dataclasses.replace(MixConfig(), **change), 50)
    assert set(np.asarray(sampled.use_cutmix).tolist()) == kinds
    assert np.isfinite(sampled.weight).all()
    assert np.ptp(sampled.weight) > 0


@pytest.mark.parametrize(
    "change", [{"probability": 0.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}]
)
def test_batches_that_are_not_mixed_stay_as_they_are(change) -> None:
    sampled = draws(dataclasses.replace(MixConfig(), **change), 1)
    draw = jax.tree.map(lambda x: x[0], sampled)
    half = VIDEO.astype(jnp.bfloat16)
    np.testing.assert_array_equal(mix_video(VIDEO, draw), VIDEO)
    assert mix_video(half, draw).dtype == half.dtype
    np.testing.assert_array_equal(mix_targets(LABELS, draw, 3, 0.0), jax.nn.one_hot(LABELS, 3))
