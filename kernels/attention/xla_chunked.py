"""Attention tile by tile in plain XLA: never all N×M scores of all heads in memory.

A call is cut into blocks (one example, a few key-value heads), a block into tiles of query rows
against all keys. Whole rows of scores keep the softmax exact in one pass; the backward pass
computes a tile's weights again from the saved log-sum-exp.

Two properties of XLA's CPU backend (measured, jaxlib 0.10.2) shape the code. Matrix products of
operands that lie contiguous per head run near the processor's peak, einsums over [B, N, H, D] far
from it. A product that contracts the rows of a tile is three times as fast in the form
[D, rows] @ [rows, M] as in the form [M, rows] @ [rows, D]: the gradients of k and v are therefore
accumulated transposed.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from internvideo_jax.kernels.attention.masks import Masks
from internvideo_jax.kernels.attention.request import RESIDUALS, Operands, Request, Result
from internvideo_jax.kernels.attention.tiles import Block, block_indices, split_bias

PyTree = Any


def supports(request: Request) -> str | None:
    """The reason why a call cannot be served, or None."""
    return "return_weights needs all N×M weights in memory" if request.return_weights else None


def attend(request: Request, operands: Operands) -> Result:
    """Attention in tiles. Has a gradient, but no forward-mode derivative.

    Args:
      request: what is asked.
      operands: the arrays.

    Returns:
      The result; its out has q's dtype, its lse is float32.
    """
    out, lse = _attend(request, *operands)
    return Result(out=out, lse=lse[..., 0].swapaxes(1, 2) if request.return_lse else None)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    request: Request, q: Array, k: Array, v: Array, bias: Array | None, masks: Masks
) -> tuple[Float[Array, "B N H D"], Float[Array, "B N H 1"]]:
    bias = split_bias(request, bias)

    def run_block(results: PyTree, index: Array) -> tuple[PyTree, None]:
        block = Block.at(index, request, bias, masks)
        keys, values = block.keys(k), block.keys(v)
        queries = block.queries(q) * request.scale

        def run_tile(_: None, tile: Array) -> tuple[None, PyTree]:
            scores = block.scores(_rows(queries, tile), keys, tile)
            # Finite also where a row sees nothing, whose exponentials are then zeros and not NaN.
            largest = jnp.max(scores, axis=-1, keepdims=True)
            largest = jnp.maximum(largest, jnp.finfo(jnp.float32).min)
            weights = jnp.exp(scores - largest)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            out = jnp.einsum("hnm,hmd->hnd", block.dropout(weights, tile), values)
            return None, (out / jnp.where(total > 0, total, 1), largest + jnp.log(total))

        _, (out, lse) = lax.scan(run_tile, None, block.tiles)
        return (block.store_queries(results[0], out), block.store_queries(results[1], lse)), None

    out = lax.full_like(q, 0)
    lse = lax.full_like(q, 0, dtype=jnp.float32, shape=(*q.shape[:3], 1))
    return lax.scan(run_block, (out, lse), block_indices(request))[0]


def _attend_forward(
    request: Request, q: Array, k: Array, v: Array, bias: Array | None, masks: Masks
) -> tuple[tuple[Array, Array], PyTree]:
    results = _attend(request, q, k, v, bias, masks)
    out, lse = (checkpoint_name(x, RESIDUALS) for x in results)
    return (out, lse), (q, k, v, bias, masks, out, lse)


def _attend_backward(request: Request, saved: PyTree, cotangents: tuple[Array, Array]) -> PyTree:
    q, k, v, bias, masks, out, lse = saved
    d_out, d_lse = cotangents
    split = split_bias(request, bias)
    # The mean of d_weights under the weights of a row equals d_out · out.
    mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    mean = mean - d_lse
    # A row that sees nothing has no finite score: any finite lse gives it zeros.
    lse = jnp.where(jnp.isneginf(lse), 0, lse)

    def run_block(grads: PyTree, index: Array) -> tuple[PyTree, None]:
        dq, dk, dv, d_bias = grads
        block = Block.at(index, request, split, masks)
        keys, values = block.keys(k), block.keys(v)
        per_row = (block.queries(q) * request.scale, *map(block.queries, (d_out, lse, mean)))

        def run_tile(sums: PyTree, tile: Array) -> tuple[PyTree, Array]:
            dk_t, dv_t, d_bias = sums
            queries, d_rows, row_lse, row_mean = (_rows(x, tile) for x in per_row)
            weights = jnp.exp(block.scores(queries, keys, tile) - row_lse)
            d_weights = block.dropout(jnp.einsum("hnd,hmd->hnm", d_rows, values), tile)
            d_scores = weights * (d_weights - row_mean)
            dv_t = dv_t + jnp.einsum("hnd,hnm->hdm", d_rows, block.dropout(weights, tile))
            dk_t = dk_t + jnp.einsum("hnd,hnm->hdm", queries, d_scores)
            d_bias = block.add_bias_gradient(d_bias, d_scores, tile)
            return (dk_t, dv_t, d_bias), jnp.einsum("hnm,hmd->hnd", d_scores, keys)

        zeros = lax.full_like(keys, 0, shape=keys.swapaxes(1, 2).shape)
        sums, dq_tiles = lax.scan(run_tile, (zeros, zeros, d_bias), block.tiles)
        dk_t, dv_t, d_bias = sums
        dq = block.store_queries(dq, dq_tiles * request.scale)
        return (dq, block.store_keys(dk, dk_t), block.store_keys(dv, dv_t), d_bias), None

    d_bias = None if split is None else lax.full_like(split, 0, jnp.float32)
    zeros = (*(lax.full_like(x, 0) for x in (q, k, v)), d_bias)
    dq, dk, dv, d_bias = lax.scan(run_block, zeros, block_indices(request))[0]
    if d_bias is not None:
        d_bias = d_bias[..., : request.queries, :].reshape(bias.shape).astype(bias.dtype)
    return dq, dk, dv, d_bias, None


def _rows(x: Float[Array, "h t c E"], tile: Array) -> Float[Array, "h c E"]:
    return lax.dynamic_index_in_dim(x, tile, axis=1, keepdims=False)


_attend.defvjp(_attend_forward, _attend_backward)
