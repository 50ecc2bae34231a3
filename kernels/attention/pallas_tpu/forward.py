"""The forward pass.

Scores lie with keys along the rows and queries along the lanes: Sᵀ = K Qᵀ. So maxima and sums over
the keys are plain additions of registers, what belongs to a query is one row, and of the output,
Oᵀ = Vᵀ Pᵀ, the matrix unit streams only as many rows as a head has channels (88 take 96, not 128).
All keys of a head are at hand, hence the maximum is known before the first exponential, and nothing
is ever rescaled. While a tile's weights are made and multiplied by the values, chunk by chunk, the
scores of the next tile, of the same head or the next, take their place.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from internvideo_jax.kernels.attention.pallas_tpu.plan import LANES, ROWS, Plan, Shapes
from internvideo_jax.kernels.attention.pallas_tpu.vectors import (
    HIDDEN,
    Head,
    Ref,
    add,
    fold_rows,
    lane_is_below,
    loop,
    loop_over_heads,
    product,
    split_in_two,
    store_extended,
    store_scores,
)


class Tile(NamedTuple):
    """Queries [start, start + size) of a head."""

    head: Head
    start: int | Array
    size: int


class Scored(NamedTuple):
    """What is known of a tile whose scores are stored.

    Attributes:
      largest: of each query's scores.
      last: scores `[1, n]` of the key that is set apart; () without one.
    """

    largest: Float[Array, "1 n"]
    last: Any


def forward(
    plan: Plan,
    q: Float[Array, "G D N"],
    k: Float[Array, "K D M"],
    v: Float[Array, "K D M"],
    interpret: bool | pltpu.InterpretParams,
) -> tuple[Float[Array, "G D N"], Float[Array, "G 1 N"]]:
    """Output, and the logarithm to the base 2 of the sum of exponentials.

    Args:
      plan: the cut.
      q, k, v: queries, keys and values by heads.
      interpret: as `pallas_call` takes it.
    """
    steps = q.shape[0] // plan.heads

    def read(i: Any) -> Any:
        return jnp.minimum(i, steps - 1) if plan.lags else i

    def written(i: Any) -> Any:
        # The first step writes nothing.
        return jnp.maximum(i - 1, 0) if plan.lags else i

    of_queries, of_out, of_lse = (
        pl.BlockSpec((plan.heads, rows, plan.query_lanes), lambda i, at=at: (at(i), 0, 0))
        for rows, at in ((plan.head_dim, read), (plan.head_dim, written), (1, written))
    )
    of_keys = key_spec(plan, read)
    products = q.shape[0] * plan.queries * plan.keys
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid=(steps + plan.lags,),
        in_specs=[of_queries, of_keys, of_keys],
        out_specs=[of_out, of_lse],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((q.shape[0], 1, q.shape[2]), jnp.float32),
        ],
        scratch_shapes=vmem(plan.forward_scratch()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary" if plan.lags else "parallel",),
            vmem_limit_bytes=plan.vmem_bytes("forward"),
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * products * plan.head_dim,
            transcendentals=products,
            bytes_accessed=2 * (q.nbytes + k.nbytes),
        ),
        interpret=interpret,
        name="attention_forward",
    )(q, k, v)


def key_spec(plan: Plan, at: Callable[[Any], Any] = lambda i: i) -> pl.BlockSpec:
    """The keys or values of a step's heads.

    Args:
      plan: the cut.
      at: the number of the heads' block, of the step's number.
    """
    block = (plan.heads, plan.head_dim, plan.key_lanes)
    return pl.BlockSpec(block, lambda i: (at(i) // plan.group, 0, 0))


def vmem(shapes: Shapes) -> dict[str, pl.MemoryRef]:
    """Vector memory by name."""
    return {name: pltpu.VMEM(shape, jnp.dtype(dtype)) for name, (shape, dtype) in shapes.items()}


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
    largest_ref: Ref,
    plan: Plan,
) -> None:
    sum_in_product = plan.folded and not plan.exact_lse

    def prepare(head: Head) -> None:
        prepare_keys(head)
        prepare_values(head)
        if plan.odd_query:
            attend_last_query(head)

    def prepare_keys(head: Head) -> None:
        keys = k_ref[head.number]
        if plan.split_keys:
            keys = split_in_two(keys.astype(jnp.float32) * plan.exponent, keys.dtype)
        keys_ref[head.buffer] = keys.T

    def prepare_values(head: Head) -> None:
        values = values_ref.at[head.buffer]
        store_extended(values, v_ref.at[head.number], plan.keys, [1.0])

    def attend_last_query(head: Head) -> None:
        """One row of scores costs the matrix unit 16 rows, a tile 128 lanes."""
        lane = plan.queries - 1
        query = q_ref[head.number, :, lane : lane + LANES].T[:ROWS]
        scores = product(query, k_ref[head.number])[:1]
        scores = jnp.where(lane_is_below(plan.keys, scores.shape), scores, HIDDEN)
        largest = jnp.max(scores, axis=1, keepdims=True)
        weights = jnp.exp2((scores - largest) * plan.exponent)
        total = jnp.sum(weights, axis=1, keepdims=True)
        values = values_ref[head.buffer].astype(jnp.float32)[: plan.head_dim]
        out = jnp.sum(values * weights, axis=1, keepdims=True)
        o_ref[head.number, :, lane : lane + 1] = (out / total).astype(o_ref.dtype)
        lse_ref[head.number, :, lane : lane + 1] = largest * plan.exponent + jnp.log2(total)

    def queries(tile: Tile) -> Float[Array, "C n"]:
        found = q_ref[tile.head.number, :, pl.ds(tile.start, tile.size)]
        return jnp.concatenate([found, found], axis=0) if plan.split_keys else found

    def stored(head: Head) -> Ref:
        """Where the scores of a head's tile are."""
        return scores_ref.at[head.number if plan.lags else 0]

    def powers(x: Array) -> Array:
        """What differences of scores stand for."""
        return jnp.exp2(x if plan.split_keys else x * plan.exponent)

    def score(tile: Tile, chunk: slice) -> Float[Array, "8 n"]:
        keys = keys_ref[tile.head.buffer, chunk, :]
        scores = product(keys, queries(tile))
        return store_scores(stored(tile.head).at[chunk], scores, plan.visible - chunk.start)

    def score_last_key(tile: Tile, largest: Float[Array, "8 n"]) -> Scored:
        highest = jnp.max(largest, axis=0, keepdims=True)
        if not plan.odd_key:
            return Scored(highest, ())
        last = slice(plan.visible, plan.visible + ROWS)
        scores = product(keys_ref[tile.head.buffer, last, :], queries(tile))[:1]
        return Scored(jnp.maximum(highest, scores), scores)

    def step(tile: Tile | None, scored: Scored | None, following: Tile | None) -> Scored | None:
        """The output of a tile, beside the scores of the following one."""
        out = total = None
        largest: Any = None
        for chunk in plan.chunks:
            if tile and scored:
                scores = stored(tile.head)[chunk, : tile.size]
                weights = powers(scores - scored.largest)
                if not sum_in_product:
                    total = add(total, fold_rows(weights, jnp.sum))
            if following:
                highest = score(following, chunk)
                largest = highest if largest is None else jnp.maximum(largest, highest)
            if tile:
                values = values_ref[tile.head.buffer, :, chunk]
                out = add(out, product(values, weights.astype(values.dtype)))
        if tile and scored and out is not None:
            finish(tile, scored, out, total)
        return None if following is None else score_last_key(following, largest)

    def finish(tile: Tile, scored: Scored, out: Array, total: Array | None) -> None:
        if total is None:
            total = out[plan.head_dim : plan.head_dim + 1]
        else:
            total = jnp.sum(total, axis=0, keepdims=True)
        out = out[: plan.head_dim]
        if plan.odd_key:
            weight = powers(scored.last - scored.largest)
            last = v_ref[tile.head.number, :, plan.keys - 1 : plan.keys].astype(jnp.float32)
            out, total = out + last * weight, total + weight
        place = pl.ds(tile.start, tile.size)
        o_ref[tile.head.number, :, place] = (out * (1 / total)).astype(o_ref.dtype)
        largest = scored.largest if plan.split_keys else scored.largest * plan.exponent
        lse_ref[tile.head.number, :, place] = largest + jnp.log2(total)

    def attend_head(head: Head, following: Head | None, scored: Any) -> Scored | None:
        """All tiles of a head, and the scores of the following one's first tile."""

        def tile_at(i: int | Array) -> Tile:
            start: Any = i * plan.tile
            start = start if isinstance(i, int) else pl.multiple_of(start, LANES)
            return Tile(head, start, plan.tile)

        last = plan.full_tiles - 1
        scored = loop(last, lambda i, x: step(tile_at(i), x, tile_at(i + 1)), scored)
        # Work for the other units beside the products of the last tile.
        if following:
            prepare(following)
        first = Tile(following, 0, plan.tile) if following else None
        ends = [tile_at(last)]
        if plan.rest:
            ends.append(Tile(head, plan.full_tiles * plan.tile, plan.rest))
        for tile, next_tile in zip(ends, [*ends[1:], first], strict=True):
            scored = step(tile, scored, next_tile)
        return scored

    def run_lagging(*, outputs: bool, scores: bool) -> None:
        """The outputs of the heads of the step before, beside the scores of this step's heads."""
        for number in range(plan.heads):
            head = Head(number, number)
            tile = Tile(head, 0, plan.tile)
            if scores:
                prepare_keys(head)
            of_before = Scored(largest_ref[number], ()) if outputs else None
            scored = step(tile if outputs else None, of_before, tile if scores else None)
            if scored:
                largest_ref[number] = scored.largest
                prepare_values(head)

    if plan.lags:
        number, last = pl.program_id(0), pl.num_programs(0) - 1
        is_end = (number == 0) | (number == last)
        pl.when(number == 0)(functools.partial(run_lagging, outputs=False, scores=True))
        pl.when(~is_end)(functools.partial(run_lagging, outputs=True, scores=True))
        pl.when(number == last)(functools.partial(run_lagging, outputs=True, scores=False))
        return
    first = Head(0, 0)
    prepare(first)
    scored = step(None, None, Tile(first, 0, plan.tile))
    loop_over_heads(plan.heads, attend_head, scored)
