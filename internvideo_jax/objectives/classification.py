"""Classification losses on soft targets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def smooth_one_hot(
    labels: Int[Array, "*batch"], num_classes: int, smoothing: float = 0.0
) -> Float[Array, "*batch C"]:
    """Targets with `1 - s + s/C` at the label and `s/C` elsewhere, float32.

    A label outside [0, C) gives a row without any peak.
    """
    off = smoothing / num_classes
    return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + off


def soft_cross_entropy(
    logits: Float[Array, "B C"], targets: Float[Array, "B C"]
) -> Float[Array, ""]:
    """Mean over the batch of `-sum_c target_c log softmax(logits)_c`, in float32.

    Raises:
      ValueError: the shapes differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"expected targets of the logits' shape {logits.shape}, found {targets.shape};"
            " turn integer labels into targets with `smooth_one_hot`"
        )
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.mean(jnp.sum(targets.astype(jnp.float32) * log_probabilities, axis=-1))
