"""Attention head by head in plain XLA: the definition, of all examples, for one head at a time.

On a TPU the scores of one head of many short examples fit into the fast memory (VMEM), where a pass
over them costs a fraction of one over the scores of all heads; heads, unlike examples, are never
innermost in the compiler's layouts, so taking one out is cheap (docs/step_time.md). The backward
pass computes a head's scores again.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int

from internvideo_jax.kernels.attention import reference
from internvideo_jax.kernels.attention.masks import Masks
from internvideo_jax.kernels.attention.request import RESIDUALS, Operands, Request, Result


def supports(request: Request) -> str | None:
    """The reason why a call cannot be served, or None."""
    return "return_weights needs all N×M weights in memory" if request.return_weights else None


def attend(request: Request, operands: Operands) -> Result:
    """Attention by key-value heads, each with its query heads; differentiated by JAX.

    Args:
      request: what is asked.
      operands: the arrays.

    Returns:
      The result; its out has q's dtype, its lse is float32.
    """
    b, n, h, d = operands.q.shape
    bias = operands.bias
    whole_bias = bias is not None and bias.shape[1] == 1
    of_head = dataclasses.replace(request, heads=request.group, kv_heads=1)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run_head(parts: tuple[Int[Array, ""], Operands]) -> tuple[Array, Array | None]:
        head, own = parts
        masks = operands.masks
        if masks.dropout is not None:
            origin = masks.dropout.origin + jnp.array([0, 1, 0]) * head * request.group
            masks = masks._replace(dropout=masks.dropout._replace(origin=origin))
        result = reference.attend(
            of_head, own._replace(bias=bias if whole_bias else own.bias, masks=masks)
        )
        return result.out, result.lse

    def by_head(x: Array, axis: int, size: int) -> Array:
        """The heads' axis cut into key-value heads, which come first."""
        split = x.reshape(*x.shape[:axis], request.kv_heads, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(split, axis, 0)

    parts = Operands(
        by_head(operands.q, 2, request.group),
        by_head(operands.k, 2, 1),
        by_head(operands.v, 2, 1),
        None if bias is None or whole_bias else by_head(bias, 1, request.group),
        Masks(),
    )
    out, lse = lax.map(run_head, (jnp.arange(request.kv_heads), parts))
    out = checkpoint_name(jnp.moveaxis(out, 0, 2).reshape(b, n, h, d), RESIDUALS)
    return Result(out, None if lse is None else jnp.moveaxis(lse, 0, 1).reshape(b, h, n))
