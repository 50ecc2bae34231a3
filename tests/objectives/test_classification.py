import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from internvideo_jax.objectives.classification import smooth_one_hot, soft_cross_entropy

LOGITS = 3 * jax.random.normal(jax.random.key(0), (4, 5))
LABELS = jnp.array([0, 4, 2, 2])


def test_cross_entropy_of_integer_labels() -> None:
    expected = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS).mean()
    loss = soft_cross_entropy(LOGITS, smooth_one_hot(LABELS, 5))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_smooth_one_hot() -> None:
    targets = smooth_one_hot(LABELS, 5, 0.1)
    np.testing.assert_allclose(targets[1], [0.02, 0.02, 0.02, 0.02, 0.92], rtol=1e-6)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)


def test_losses_of_half_precision_logits_are_float32_and_finite() -> None:
    loss = soft_cross_entropy((1e4 * LOGITS).astype(jnp.bfloat16), smooth_one_hot(LABELS, 5))
    assert loss.dtype == jnp.float32
    assert jnp.isfinite(loss)


def test_integer_labels_as_soft_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="smooth_one_hot"):
        soft_cross_entropy(LOGITS, LABELS)
