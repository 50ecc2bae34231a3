"""The backward pass: gradients of queries, keys and values by one kernel.

Weights and their gradients lie like the scores of the forward pass, Pᵀ and dSᵀ, so that all three
gradients come out transposed, dVᵀ = dOᵀ P, dKᵀ = Qᵀ dS and dQᵀ = Kᵀ dSᵀ, and stream as many rows as
a head has channels. Those of keys and values are summed in vector memory, all of a head at once.
The two products that a chunk begins with run beside the three that the one before ends with.

Where operands have spare rows, one more product of ones and of -lse (or of minus the mean gradient)
subtracts these: each in three rows, as bfloat16 has a third of float32's digits.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from internvideo_jax.kernels.attention.pallas_tpu.forward import Tile, key_spec, vmem
from internvideo_jax.kernels.attention.pallas_tpu.plan import LANES, ROWS, Plan
from internvideo_jax.kernels.attention.pallas_tpu.vectors import (
    HIDDEN,
    Head,
    Ref,
    add,
    fold_lanes,
    lane_is_below,
    loop,
    loop_over_heads,
    product,
    split_in_three,
    store_extended,
    store_scores,
)


class Gradients(NamedTuple):
    """Those of the key that is set apart, as partial sums `[D, 128]`; () without one."""

    key: Any
    value: Any


def backward(
    plan: Plan,
    q: Float[Array, "G D N"],
    k: Float[Array, "K D M"],
    v: Float[Array, "K D M"],
    out: Float[Array, "G D N"],
    lse: Float[Array, "G 1 N"],
    d_out: Float[Array, "G D N"],
    d_lse: Float[Array, "G 1 N"] | None,
    interpret: bool | pltpu.InterpretParams,
) -> tuple[Float[Array, "G D N"], Float[Array, "G D M"], Float[Array, "G D M"]]:
    """Gradients of queries, keys and values.

    Args:
      plan: the cut.
      q, k, v: as the forward pass took them.
      out, lse: its results.
      d_out: gradient of `out`.
      d_lse: of the natural log of the sums, if that was asked for.
      interpret: as `pallas_call` takes it.

    Returns:
      Those of keys and values by query heads; in float32 where these share them.
    """
    of_queries = pl.BlockSpec((plan.heads, plan.head_dim, plan.query_lanes), lambda i: (i, 0, 0))
    of_keys = key_spec(plan)
    of_lse = pl.BlockSpec((plan.heads, 1, plan.query_lanes), lambda i: (i, 0, 0))
    d_keys = pl.BlockSpec((plan.heads, plan.head_dim, plan.key_lanes), lambda i: (i, 0, 0))
    d_key_shape = jax.ShapeDtypeStruct(
        (q.shape[0], *k.shape[1:]), k.dtype if plan.group == 1 else jnp.float32
    )
    operands = [q, k, v, out, d_out, lse]
    specs = [of_queries, of_keys, of_keys, of_queries, of_queries, of_lse]
    if d_lse is not None:
        operands.append(d_lse)
        specs.append(of_lse)
    products = q.shape[0] * plan.queries * plan.keys
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan, num_operands=len(operands)),
        grid=(q.shape[0] // plan.heads,),
        in_specs=specs,
        out_specs=[of_queries, d_keys, d_keys],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), d_key_shape, d_key_shape],
        scratch_shapes=vmem(plan.backward_scratch()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=plan.vmem_bytes("backward")
        ),
        cost_estimate=pl.CostEstimate(
            flops=10 * products * plan.head_dim,
            transcendentals=products,
            bytes_accessed=4 * (q.nbytes + k.nbytes),
        ),
        interpret=interpret,
        name="attention_backward",
    )(*operands)


def _kernel(
    *refs: Ref,
    plan: Plan,
    num_operands: int,
    keys_ref: Ref,
    values_ref: Ref,
    lse_ref: Ref,
    mean_ref: Ref,
    scores_ref: Ref,
    d_weights_ref: Ref,
    dk_ref: Ref,
    dv_ref: Ref,
    queries_ref: Ref | None = None,
    d_out_ref: Ref | None = None,
    flat_keys_ref: Ref | None = None,
) -> None:
    q_in, k_in, v_in, o_in, do_in, lse_in, *d_lse_in = refs[:num_operands]
    dq_out, dk_out, dv_out = refs[num_operands:]
    d, last_query, last_key = plan.head_dim, plan.queries - 1, plan.keys - 1
    is_alone = plan.full_tiles == 1 and not (plan.rest or plan.odd_query or plan.odd_key)

    def own(ref: Ref, head: Head) -> Ref:
        """A head's part of what is kept for one or two."""
        return ref.at[head.buffer]

    def queries(head: Head) -> Ref:
        return q_in.at[head.number] if queries_ref is None else own(queries_ref, head)

    def d_outs(head: Head) -> Ref:
        return do_in.at[head.number] if d_out_ref is None else own(d_out_ref, head)

    def flat_keys(head: Head) -> Ref:
        return k_in.at[head.number] if flat_keys_ref is None else own(flat_keys_ref, head)

    def prepare(head: Head) -> None:
        d_out, out = (x[head.number].astype(jnp.float32) for x in (do_in, o_in))
        # The mean of the weights' gradients under the weights, of each query.
        mean, lse = jnp.sum(d_out * out, axis=0, keepdims=True), lse_in[head.number]
        if d_lse_in:
            mean = mean - d_lse_in[0][head.number]
        if plan.queries % LANES:
            exists = lane_is_below(plan.queries, lse.shape)
            mean, lse = jnp.where(exists, mean, 0), jnp.where(exists, lse, -HIDDEN)
        own(mean_ref, head)[...], own(lse_ref, head)[...] = mean, lse
        if not plan.plain_queries:
            rows, d_rows = ([], [])
            if plan.folded:
                rows = split_in_three(-lse / plan.exponent)
                d_rows = split_in_three(-mean)
            store_extended(queries(head), q_in.at[head.number], plan.queries, rows)
            store_extended(d_outs(head), do_in.at[head.number], plan.queries, d_rows)
        for of_rows, x in ((values_ref, v_in), (keys_ref, k_in)):
            flat = x.at[head.number]
            if flat_keys_ref is not None:
                # Values are only passing through.
                flat = own(flat_keys_ref, head)
                store_extended(flat, x.at[head.number], plan.keys, [1.0] * 3)
            own(of_rows, head)[...] = flat[...].T

    def begin(head: Head) -> None:
        """The sums over queries begin with the one that is set apart, or with nothing."""
        if is_alone:
            return
        if not plan.odd_query:
            dk_ref[...], dv_ref[...] = jnp.zeros_like(dk_ref), jnp.zeros_like(dv_ref)
            return
        block, lane = pl.ds(last_query, LANES), pl.ds(last_query, 1)
        query, d_out = (x[head.number, :, block] for x in (q_in, do_in))
        keys = k_in[head.number]
        scores = product(query.T[:ROWS], keys)[:1]
        d_weights = product(d_out.T[:ROWS], v_in[head.number])[:1]
        query, d_out = (x[:, :1].astype(jnp.float32) for x in (query, d_out))
        weights = jnp.exp2(scores * plan.exponent - own(lse_ref, head)[:, lane])
        exists = lane_is_below(plan.keys, scores.shape)
        weights = jnp.where(exists, weights, 0)
        d_scores = jnp.where(exists, weights * (d_weights - own(mean_ref, head)[:, lane]), 0)
        dk_ref[:d], dv_ref[:d] = query * d_scores, d_out * weights
        dq = jnp.where(lane_is_below(plan.keys, keys.shape), keys.astype(jnp.float32) * d_scores, 0)
        dq = jnp.sum(dq, axis=1, keepdims=True)
        dq_out[head.number, :, lane] = (dq * plan.scale).astype(dq_out.dtype)

    def score(tile: Tile, number: int) -> None:
        """The scores of a chunk, and the gradients of its weights."""
        chunk, place = plan.chunks[number], pl.ds(tile.start, tile.size)
        scores = product(own(keys_ref, tile.head)[chunk, :], queries(tile.head)[:, place])
        store_scores(scores_ref.at[number % 2], scores, plan.visible - chunk.start)
        d_weights = product(own(values_ref, tile.head)[chunk, :], d_outs(tile.head)[:, place])
        d_weights_ref[number % 2, : scores.shape[0], : tile.size] = d_weights

    def step(tile: Tile, following: Tile | None, sums: Gradients) -> Gradients:
        """All chunks of a tile whose first scores are stored; stores the following tile's."""
        place = pl.ds(tile.start, tile.size)
        query, d_out = queries(tile.head)[:, place], d_outs(tile.head)[:, place]
        lse, mean = own(lse_ref, tile.head)[:, place], own(mean_ref, tile.head)[:, place]
        dq = None
        for number, chunk in enumerate(plan.chunks):
            stored = number % 2, slice(chunk.stop - chunk.start), slice(tile.size)
            scores, d_scores = scores_ref[stored], d_weights_ref[stored]
            if plan.folded:
                weights = jnp.exp2(scores * plan.exponent)
            else:
                weights = jnp.exp2(scores * plan.exponent - lse)
                d_scores = d_scores - mean
            d_scores = (weights * d_scores).astype(query.dtype)
            weights = weights.astype(query.dtype)
            if number + 1 < len(plan.chunks):
                score(tile, number + 1)
            elif following:
                score(following, 0)
            store_sum(dv_ref, chunk, product(d_out, weights, transposed=True))
            store_sum(dk_ref, chunk, product(query, d_scores, transposed=True))
            dq = add(dq, product(flat_keys(tile.head)[:, chunk], d_scores))
        assert dq is not None
        dq = dq[:d]
        if plan.odd_key:
            query, d_out = (x.astype(jnp.float32)[:d] for x in (query, d_out))
            key, value = (
                x[tile.head.number, :, pl.ds(last_key, 1)].astype(jnp.float32) for x in (k_in, v_in)
            )
            scores = jnp.sum(key * query, axis=0, keepdims=True)
            weights = jnp.exp2(scores * plan.exponent - lse)
            d_scores = weights * (jnp.sum(value * d_out, axis=0, keepdims=True) - mean)
            dq = dq + key * d_scores
            sums = Gradients(
                sums.key + fold_lanes(query * d_scores), sums.value + fold_lanes(d_out * weights)
            )
        dq_out[tile.head.number, :, place] = (dq * plan.scale).astype(dq_out.dtype)
        return sums

    def store_sum(ref: Ref, chunk: slice, x: Array) -> None:
        ref[:, chunk] = x if is_alone else ref[:, chunk] + x

    def finish(head: Head, sums: Gradients) -> None:
        for out, ref, total, factor in (
            (dk_out, dk_ref, sums.key, plan.scale),
            (dv_out, dv_ref, sums.value, 1),
        ):
            out[head.number] = (ref[:d] * factor).astype(out.dtype)
            if plan.odd_key:
                lane = pl.ds(last_key, 1)
                last = jnp.sum(total, axis=1, keepdims=True) + ref[:d, lane]
                out[head.number, :, lane] = (last * factor).astype(out.dtype)

    def differentiate_head(head: Head, following: Head | None, carry: tuple[()]) -> tuple[()]:
        def tile_at(i: int | Array) -> Tile:
            start: Any = i * plan.tile
            start = start if isinstance(i, int) else pl.multiple_of(start, LANES)
            return Tile(head, start, plan.tile)

        begin(head)
        nothing = jnp.zeros((d, LANES), jnp.float32) if plan.odd_key else ()
        sums = Gradients(nothing, nothing)
        last = plan.full_tiles - 1
        sums = loop(last, lambda i, x: step(tile_at(i), tile_at(i + 1), x), sums)
        # Work for the other units beside the products of the last tile.
        if following:
            prepare(following)
        first = Tile(following, 0, plan.tile) if following else None
        ends = [tile_at(last)]
        if plan.rest:
            ends.append(Tile(head, plan.full_tiles * plan.tile, plan.rest))
        for tile, next_tile in zip(ends, [*ends[1:], first], strict=True):
            sums = step(tile, next_tile, sums)
        finish(head, sums)
        return carry

    first = Head(0, 0)
    prepare(first)
    score(Tile(first, 0, plan.tile), 0)
    loop_over_heads(plan.heads, differentiate_head, ())
