"""Attention as its definition: scores, softmax, weighted sum, each a whole array in float32."""

import jax
import jax.numpy as jnp

from internvideo_jax.kernels.attention.masks import dropout_keep, visible
from internvideo_jax.kernels.attention.request import Operands, Request, Result


def supports(request: Request) -> str | None:
    """None: the definition serves every call."""
    return None


def attend(request: Request, operands: Operands) -> Result:
    """Attention with all B·H·N·M scores in memory; differentiated by JAX.

    Args:
      request: what is asked.
      operands: the arrays.

    Returns:
      The result; its out has q's dtype, lse and weights are float32.
    """
    b, n, h, d = operands.q.shape
    m, kv_heads, group = request.keys, request.kv_heads, request.group
    q = operands.q.astype(jnp.float32).reshape(b, n, kv_heads, group, d) * request.scale
    k = operands.k.astype(jnp.float32)
    v = operands.v.astype(jnp.float32)

    scores = jnp.einsum("bnkgd,bmkd->bkgnm", q, k).reshape(b, h, n, m)
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
    out = jnp.einsum("bkgnm,bmkd->bnkgd", kept.reshape(b, kv_heads, group, n, m), v)

    lse = None
    if request.return_lse:
        lse = jnp.where(sees_any, largest + jnp.log(total), -jnp.inf)[..., 0]
    return Result(
        out=out.reshape(b, n, h, d).astype(operands.q.dtype),
        lse=lse,
        weights=weights if request.return_weights else None,
    )
