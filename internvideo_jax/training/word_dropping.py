"""Texts without some of their words, for training that hides a part of what it compares.

Vocabularies of CLIP and LLaMA have no word that stands for a hidden one, so that what is hidden is
left out and the rest moves up.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def without_words(ids: Int[Array, "B L"], is_dropped: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """Texts without those of their inner tokens that are marked.

    The first and the last token stay, and so does all of a text of which nothing would be left
    between them.

    Args:
      ids: of texts that end in a token other than 0, with zeros behind it.
      is_dropped: which tokens to leave out.
    """
    places = jnp.arange(ids.shape[1])
    last = jnp.max(jnp.where(ids != 0, places, 0), axis=1, keepdims=True)
    is_inner = (places > 0) & (places < last)
    is_dropped = is_dropped & is_inner
    leaves_some = jnp.any(is_inner & ~is_dropped, axis=1, keepdims=True)
    is_kept = (places <= last) & ~(is_dropped & leaves_some)
    order = jnp.argsort(~is_kept, axis=1, stable=True)
    moved = jnp.take_along_axis(ids, order, axis=1)
    return jnp.where(places < is_kept.sum(1, keepdims=True), moved, 0)
