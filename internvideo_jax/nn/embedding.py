"""Tables of embeddings that are looked up by ids, and may serve as the weights of a tied head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.nn.linear import default_kernel_init
from internvideo_jax.nn.partitioning import with_axes


def embedding(
    num_embeddings: int, width: int, dtype: jnp.dtype, name: str | None, axis: str = "vocab"
) -> nn.Embed:
    """A table `embedding` `[V, D]`; `axis` is the logical name of its first dimension."""
    init = with_axes(default_kernel_init, (axis, "embed"))
    return nn.Embed(num_embeddings, width, dtype=dtype, embedding_init=init, name=name)


def look_up(table: nn.Embed, ids: jax.Array, pad_id: int) -> jax.Array:
    """Rows of `table` for ids `[B, N]`, as `[B, N, D]`; none of their gradient is the padding's.

    A head tied to the table still has a gradient for the row of `pad_id`, as in PyTorch.
    """
    rows = table(ids)
    return jnp.where((ids == pad_id)[..., None], jax.lax.stop_gradient(rows), rows)


def tied_logits(table: nn.Embed, x: jax.Array) -> jax.Array:
    """Products of `x` `[..., D]` with all rows of `table`, `[..., V]` float32."""
    weights = jnp.asarray(table.embedding, x.dtype)
    return jnp.einsum("...d,vd->...v", x, weights, preferred_element_type=jnp.float32)
