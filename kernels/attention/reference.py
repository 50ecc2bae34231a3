"""Attention as its definition: scores, softmax, weighted sum, each a whole array in float32."""

from typing import Any

import jax
import jax.numpy as jnp

from internvideo_jax.kernels.attention.masks import dropout_keep, visible
from internvideo_jax.kernels.attention.request import Operands, Request, Result


def supports(request: Request) -> str | None:
    """None: the definition serves every call."""
    return None


def attend(request: Request, operands: Operands, products: Any = jnp.float32) -> Result:
    """Attention with all B·H·N·M scores in memory; differentiated by JAX.

    Args:
      request: what is asked.
      operands: the arrays.
      products: dtype of what the two matrix products multiply; their sums are float32.

    Returns:
      The result; its out has q's dtype, lse and weights are float32.
    """
    b, n, h, d = operands.q.shape
    m, kv_heads, group = request.keys, request.kv_heads, request.group
    q, k, v = (x.astype(products) for x in operands[:3])
    q = q.reshape(b, n, kv_heads, group, d)
    # In half precision a scaled q would be rounded again.
    is_exact = q.dtype == jnp.float32
    q = q * request.scale if is_exact else q
    sums = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("bnkgd,bmkd->bkgnm", q, k, **sums).reshape(b, h, n, m)
    scores = scores if is_exact else scores * request.scale
    if operands.bias is not None:
        scores = scores + operands.bias.astype(jnp.float32)
    allowed = visible(jnp.arange(n), m, operands.masks)
    if allowed is not None:
        allowed = allowed[:, None] if allowed.ndim == 3 else allowed
        scores = jnp.where(allowed, scores, -jnp.inf)

    # A row that sees nothing has the maximum -inf: the finite bound turns its exp into zeros, and
    # its total of 1 keeps NaN out of the gradient.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    largest = jnp.maximum(largest, jnp.finfo(jnp.float32).min)
    unnormalized = jnp.exp(scores - largest)
    total = jnp.sum(unnormalized, axis=-1, keepdims=True)
    sees_any = total > 0
    total = jnp.where(sees_any, total, 1.0)
    weights = unnormalized / total

    kept = weights
    if operands.masks.dropout is not None:
        examples, heads, rows = jnp.ix_(jnp.arange(b), jnp.arange(h), jnp.arange(n))
        keep = dropout_keep(operands.masks.dropout, examples, heads, rows, m, request.dropout_rate)
        kept = jnp.where(keep, weights / (1 - request.dropout_rate), 0.0)
    kept = kept.reshape(b, kv_heads, group, n, m).astype(products)
    out = jnp.einsum("bkgnm,bmkd->bnkgd", kept, v, **sums)

    lse = None
    if request.return_lse:
        lse = jnp.where(sees_any, largest + jnp.log(total), -jnp.inf)[..., 0]
    return Result(
        out=out.reshape(b, n, h, d).astype(operands.q.dtype),
        lse=lse,
        weights=weights if request.return_weights else None,
    )
