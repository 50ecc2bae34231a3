"""The forward pass of causal attention, which lies in registers as that of `..forward` does.

While a tile's weights are made and multiplied by the values, chunk by chunk, the scores of the next
tile take their place: that sees all keys that this one sees, and its own, on its diagonal.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from internvideo_jax.kernels.attention.pallas_tpu.causal.plan import CausalPlan
from internvideo_jax.kernels.attention.pallas_tpu.forward import vmem
from internvideo_jax.kernels.attention.pallas_tpu.vectors import (
    HIDDEN,
    Ref,
    aligned,
    fold_rows,
    from_lane,
    loop,
    product,
    sees,
    store_extended,
)


class Tile(NamedTuple):
    """Queries [start, start + size)."""

    start: int | Array
    size: int


def forward(
    plan: CausalPlan,
    q: Float[Array, "G D N"],
    k: Float[Array, "K D N"],
    v: Float[Array, "K D N"],
    interpret: bool | pltpu.InterpretParams,
) -> tuple[Float[Array, "G D N"], Float[Array, "G 1 N"]]:
    """Output, and the logarithm to the base 2 of the sum of exponentials.

    Args:
      plan: the cut.
      q: queries by heads; those that share keys follow each other.
      k, v: keys and values by heads.
      interpret: as `pallas_call` takes it.
    """
    of_queries, of_keys, of_lse = specs(plan)
    products = q.shape[0] * plan.tokens**2 // 2
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid=(k.shape[0], plan.group),
        in_specs=[of_queries, of_keys, of_keys],
        out_specs=[of_queries, of_lse],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((q.shape[0], 1, q.shape[2]), jnp.float32),
        ],
        scratch_shapes=vmem(plan.forward_scratch()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=plan.vmem_bytes("forward"),
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * products * plan.head_dim,
            transcendentals=products,
            bytes_accessed=2 * (q.nbytes + k.nbytes),
        ),
        interpret=interpret,
        name="causal_attention_forward",
    )(q, k, v)


def specs(plan: CausalPlan) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """What a query head, a key-value head, and a row of a query head have in a step of the grid."""

    def of_query_head(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, rows, plan.lanes), lambda i, j: (i * plan.group + j, 0, 0))

    of_keys = pl.BlockSpec((None, plan.head_dim, plan.lanes), lambda i, _: (i, 0, 0))
    return of_query_head(plan.head_dim), of_keys, of_query_head(1)


def tiles(plan: CausalPlan) -> list[Tile]:
    """The last one, or two, of a head; before them come whole ones."""
    start = plan.full_tiles * plan.tile
    last = [Tile(start - plan.tile, plan.tile)]
    return [*last, Tile(start, plan.rest)] if plan.rest else last


def _kernel(
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    o_ref: Ref,
    lse_ref: Ref,
    *,
    keys_ref: Ref,
    values_ref: Ref,
    scores_ref: Ref,
    out_ref: Ref,
    plan: CausalPlan,
) -> None:
    @pl.when(pl.program_id(1) == 0)
    def prepare() -> None:
        keys_ref[...] = k_ref[...].T
        store_extended(values_ref, v_ref, plan.tokens)

    def score(tile: Tile, start: int | Array, hidden: int | None = None) -> Float[Array, "8 n"]:
        """Stores a chunk's scores; the tile's first `hidden` queries are before the diagonal's."""
        keys, lanes = pl.ds(aligned(start), plan.chunk), slice(hidden or 0, tile.size)
        place = pl.ds(aligned(tile.start + lanes.start), tile.size - lanes.start)
        scores = product(keys_ref[keys, :], q_ref[:, place])
        if hidden is not None:
            scores = jnp.where(sees(scores.shape), scores, HIDDEN)
        scores_ref[keys, lanes] = scores
        return fold_rows(scores, jnp.max)

    def score_diagonal(tile: Tile, largest: Any) -> Float[Array, "1 n"]:
        """The last scores of a tile, and the largest of each query."""
        for hidden in range(0, tile.size, plan.chunk):
            highest = score(tile, tile.start + hidden, hidden)
            largest = from_lane(hidden, jnp.maximum, largest, highest)
        return jnp.max(largest, axis=0, keepdims=True)

    def step(tile: Tile, highest: Float[Array, "1 n"], following: Tile | None) -> Any:
        """The output of a tile, beside the scores of the following one."""
        out_ref[:, : tile.size] = jnp.zeros((plan.rows, tile.size), jnp.float32)

        def attend_chunk(start: int | Array, hidden: int, carry: tuple[Any, Any]) -> Any:
            total, largest = carry
            keys, lanes = pl.ds(aligned(start), plan.chunk), slice(hidden, tile.size)
            weights = jnp.exp2((scores_ref[keys, lanes] - highest[:, lanes]) * plan.exponent)
            total = from_lane(hidden, jnp.add, total, fold_rows(weights, jnp.sum))
            if following:
                largest = jnp.maximum(largest, score(following, start))
            out_ref[:, lanes] += product(values_ref[:, keys], weights.astype(values_ref.dtype))
            return total, largest

        def attend_block(number: Any, carry: tuple[Any, Any]) -> Any:
            for start in range(0, plan.tile, plan.chunk):
                carry = attend_chunk(number * plan.tile + start, 0, carry)
            return carry

        total = jnp.zeros((8, tile.size), jnp.float32)
        largest = jnp.full((8, following.size), HIDDEN) if following else None
        carry = loop(tile.start // plan.tile, attend_block, (total, largest))
        for hidden in range(0, tile.size, plan.chunk):
            carry = attend_chunk(tile.start + hidden, hidden, carry)
        total, largest = carry
        result = score_diagonal(following, largest) if following else None
        total = jnp.sum(total, axis=0, keepdims=True)
        out, place = out_ref[: plan.head_dim, : tile.size], pl.ds(tile.start, tile.size)
        o_ref[:, place] = (out * (1 / total)).astype(o_ref.dtype)
        lse_ref[:, place] = highest * plan.exponent + jnp.log2(total)
        return result

    def tile_at(number: int | Array) -> Tile:
        return Tile(aligned(number * plan.tile), plan.tile)

    ends = tiles(plan)
    highest = score_diagonal(tile_at(0), None)
    highest = loop(plan.full_tiles - 1, lambda i, x: step(tile_at(i), x, tile_at(i + 1)), highest)
    for tile, following in zip(ends, [*ends[1:], None], strict=True):
        highest = step(tile, highest, following)
