import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from internvideo_jax.objectives.classification import (
    cross_entropy,
    smooth_one_hot,
    soft_cross_entropy,
)

LOGITS = 3 * jax.random.normal(jax.random.key(0), (4, 5))
LABELS = jnp.array([0, 4, 2, 2])


def test_cross_entropy_of_integer_labels() -> None:
    expected = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS).mean()
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), expected, rtol=1e-6)


def test_smoothing_mixes_with_the_mean_over_classes() -> None:
    log_p = jax.nn.log_softmax(LOGITS)
    nll = -log_p[jnp.arange(4), LABELS].mean()
    expected = 0.9 * nll - 0.1 * log_p.mean()
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, smoothing=0.1), expected, rtol=1e-6)


def test_smooth_one_hot() -> None:
    targets = smooth_one_hot(LABELS, 5, 0.1)
    np.testing.assert_allclose(targets[1], [0.02, 0.02, 0.02, 0.02, 0.92], rtol=1e-6)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)


def test_soft_targets_are_linear() -> None:
    a, b = smooth_one_hot(LABELS, 5), smooth_one_hot(LABELS[::-1], 5)
    mixed = soft_cross_entropy(LOGITS, 0.3 * a + 0.7 * b)
    expected = 0.3 * soft_cross_entropy(LOGITS, a) + 0.7 * soft_cross_entropy(LOGITS, b)
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


def test_losses_of_half_precision_logits_are_float32_and_finite() -> None:
    loss = cross_entropy((1e4 * LOGITS).astype(jnp.bfloat16), LABELS)
    assert loss.dtype == jnp.float32
    assert jnp.isfinite(loss)


def test_integer_labels_as_soft_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="smooth_one_hot"):
        soft_cross_entropy(LOGITS, LABELS)
