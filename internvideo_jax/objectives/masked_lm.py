"""Masked language modelling: the loss of guessing masked words.

Source: upstream `MLMLoss` in `InternVideo2/multi_modality/models/criterions.py`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Positions with this label do not count.
IGNORED = -100


def masked_lm_loss(logits: Float[Array, "B N V"], labels: Int[Array, "B N"]) -> Float[Array, ""]:
    """Mean cross-entropy over the positions whose label is not `IGNORED`, in float32.

    Without any such position the loss is 0; upstream's is NaN.
    """
    counts = labels != IGNORED
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    index = jnp.where(counts, labels, 0)[..., None]
    chosen = jnp.take_along_axis(log_probabilities, index, axis=-1)[..., 0]
    return -jnp.sum(jnp.where(counts, chosen, 0.0)) / jnp.maximum(jnp.sum(counts), 1)
