"""Attention tile by tile in plain XLA: never all N×M scores of all heads in memory.

The call is cut into blocks (one example, a few key-value heads) and these into tiles of query
rows against all keys. A whole row of scores at a time keeps the softmax exact in one pass. The
backward pass computes the probabilities of a tile again from the saved log-sum-exp.

Two things about XLA's CPU backend (measured with jaxlib 0.10.2) shape the code. Matrix products
of [rows, D] with [M, D] operands that lie contiguous per head run near the processor's peak,
einsums over [B, N, H, D] do not. Products that contract the rows of a tile are three times
slower as [M, rows] @ [rows, D] than as [D, rows] @ [rows, M], so the gradients of k and v are
accumulated transposed.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from internvideo_jax.kernels.attention.masks import dropout_keep, visible
from internvideo_jax.kernels.attention.request import Operands, Request, Result

# Scores held at once. On CPU a tile should stay in the last-level cache, elsewhere it should be
# large enough to fill the device.
_TILE_SCORES = {"cpu": 5 * 2**18}
_TILE_SCORES_ELSEWHERE = 2**25
# Below this many rows the matrix products lose their speed.
_MIN_ROWS = 128


class _Masks(NamedTuple):
    """The operands that have no gradient."""

    segment_ids: tuple[Int[Array, "B N"], Int[Array, "B M"]] | None
    kv_lengths: Int[Array, "B"] | None
    query_offset: Int[Array, ""] | None
    dropout_seed: Array | None


@dataclass(frozen=True)
class Tiling:
    """How a call is cut: `kv_heads` per block, and `tiles` of `rows` queries per query head."""

    kv_heads: int
    rows: int
    tiles: int


def tiling(request: Request) -> Tiling:
    """The tile sizes for a call: all queries and as many heads as fit, else fewer queries."""
    scores = _TILE_SCORES.get(request.platform, _TILE_SCORES_ELSEWHERE)
    rows = min(request.queries, max(_MIN_ROWS, scores // request.keys))
    tiles = -(-request.queries // rows)
    heads = max(1, scores // (request.queries * request.keys)) if tiles == 1 else 1
    heads = max(n for n in range(1, request.kv_heads + 1) if request.kv_heads % n == 0 and n <= heads)
    return Tiling(kv_heads=heads, rows=-(-request.queries // tiles), tiles=tiles)


def supports(request: Request) -> str | None:
    """The reason why a call cannot be served, or None."""
    if request.return_weights:
        return "return_weights asks for all N×M weights in memory"
    return None


def attend(request: Request, operands: Operands) -> Result:
    """Attention in tiles, with a backward pass that recomputes them; no forward-mode derivative.

    Args:
      request: what is asked.
      operands: the arrays.

    Returns:
      The result; its out has q's dtype, lse is float32.
    """
    masks = _Masks(*(getattr(operands, name) for name in _Masks._fields))
    out, lse = _attend(request, operands.q, operands.k, operands.v, operands.bias, masks)
    return Result(out=out, lse=lse if request.return_lse else None)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    request: Request, q: Array, k: Array, v: Array, bias: Array | None, masks: _Masks
) -> tuple[Array, Array]:
    return _forward(request, q, k, v, bias, masks)


def _attend_forward(
    request: Request, q: Array, k: Array, v: Array, bias: Array | None, masks: _Masks
) -> tuple[tuple[Array, Array], tuple]:
    out, lse = _forward(request, q, k, v, bias, masks)
    return (out, lse), (q, k, v, bias, masks, out, lse)


def _attend_backward(request: Request, saved: tuple, cotangents: tuple[Array, Array]) -> tuple:
    return (*_backward(request, *saved, *cotangents), None)


_attend.defvjp(_attend_forward, _attend_backward)
