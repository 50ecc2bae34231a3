import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_jax.training.masking import (
    attention_guided_kept,
    importance_order,
    kept_to_mask,
    mask_to_kept,
    num_kept,
    tube_kept,
)


def exponential(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.exponential(jax.random.key(seed), shape)


guided = jax.jit(attention_guided_kept, static_argnums=(2, 3))
tube = jax.jit(tube_kept, static_argnums=(1, 2, 3, 4))


def test_counts_of_the_released_recipes() -> None:
    assert num_kept(256, 0.8) == 52
    assert num_kept(2048, 0.8) == 410


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_useless_ratios_are_refused(ratio) -> None:
    with pytest.raises(ValueError, match="mask ratio"):
        num_kept(256, ratio)
    with pytest.raises(ValueError, match="at least one of 0 tokens"):
        num_kept(0, 0.5)


def test_order_sorts_weights_over_draws() -> None:
    attention, draws = jnp.array([[0.1, 0.4, 0.3, 0.2]]), jnp.array([[0.1, 4.0, 0.5, 1.0]])
    np.testing.assert_array_equal(importance_order(attention, draws), [[0, 2, 3, 1]])


def test_permutations_follow_the_weights() -> None:
    attention = jnp.array([0.1, 0.2, 0.3, 0.4])
    order = importance_order(jnp.tile(attention, (20_000, 1)), exponential(0, (20_000, 4)))
    first = np.bincount(order[:, 0], minlength=4) / 20_000
    # Four standard deviations of a proportion of 20 000 draws.
    np.testing.assert_allclose(first, attention, atol=0.014)
    # Without replacement: given that 3 came first, the others share what is left.
    second = np.bincount(order[order[:, 0] == 3, 1], minlength=4)
    np.testing.assert_allclose(second / second.sum(), [1 / 6, 2 / 6, 3 / 6, 0], atol=0.025)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_tokens_without_usable_weight_come_last_in_random_order(bad) -> None:
    attention = jnp.tile(jnp.array([bad, 1e-30, bad, 0.5, bad]), (64, 1))
    order = np.asarray(importance_order(attention, exponential(1, (64, 5))))
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(5), (64, 1)))
    assert (np.sort(order[:, :2], axis=1) == [1, 3]).all()
    assert len({tuple(row) for row in order[:, 2:]}) == 6


@pytest.mark.parametrize(
    ("batch", "frames", "places", "ratio"), [(1, 1, 1, 0.0), (2, 3, 7, 0.8), (3, 2, 12, 0.95)]
)
@pytest.mark.parametrize("per_frame", [True, False])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_guided_masks_keep_the_most_important_of_each_row(
    batch, frames, places, ratio, per_frame, seed
) -> None:
    rows, tokens = (batch * frames, places) if per_frame else (batch, frames * places)
    rng = np.random.default_rng(seed)
    attention = rng.random((rows, tokens)).astype(np.float32)
    draws = rng.exponential(size=(rows, tokens)).astype(np.float32)
    kept = np.asarray(guided(attention, draws, ratio, batch))

    count = tokens - int(tokens * ratio)
    assert kept.dtype == np.int32
    assert kept.shape == (batch, 1 + rows // batch * count)
    assert (kept[:, 0] == 0).all()
    assert (np.diff(kept, axis=1) > 0).all()

    mask = np.asarray(kept_to_mask(kept, 1 + frames * places))
    np.testing.assert_array_equal(mask_to_kept(mask), kept)
    visible = ~mask[:, 1:].reshape(rows, tokens)
    assert (visible.sum(axis=1) == count).all()
    scores = attention / draws
    worst_kept = np.where(visible, scores, np.inf).min(axis=1)
    best_dropped = np.where(visible, -np.inf, scores).max(axis=1)
    assert (worst_kept >= best_dropped).all()


def test_random_masks() -> None:
    kept = tube(jax.random.key(0), 64, 1, 24, 0.75)
    assert kept.shape == (64, 7)
    assert (kept[:, 0] == 0).all()
    assert (np.diff(kept, axis=1) > 0).all()
    assert kept.max() <= 24
    counts = np.bincount(np.asarray(kept[:, 1:]).ravel(), minlength=25)[1:]
    # Every token is kept with chance 1/4: 16 of 64, within five standard deviations.
    assert (abs(counts - 16) < 5 * np.sqrt(64 * 3 / 16)).all()


def test_tube_masks_repeat_one_pattern_per_clip() -> None:
    kept = tube(jax.random.key(0), 8, 3, 16, 0.75)
    assert kept.shape == (8, 1 + 3 * 4)
    mask = np.asarray(kept_to_mask(kept, 1 + 48))
    assert not mask[:, 0].any()
    frames = mask[:, 1:].reshape(8, 3, 16)
    assert (frames == frames[:, :1]).all()
    assert (frames[:, 0].sum(axis=1) == 12).all()
    assert len({row.tobytes() for row in frames[:, 0]}) > 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 4)), "boolean mask"),
        (np.zeros(4, bool), "boolean mask"),
        (np.array([[False, True], [False, False]]), r"\[1, 2\]"),
    ],
)
def test_masks_that_have_no_kept_indices(mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        mask_to_kept(mask)
