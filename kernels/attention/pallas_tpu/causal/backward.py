"""The backward pass of causal attention, which lies in registers as that of `..backward` does.

Gradients of keys and values are summed in vector memory, over the query heads that share them, too.
The two products that a chunk begins with run beside the three that the one before ends with.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from internvideo_jax.kernels.attention.pallas_tpu.causal.forward import Tile, specs, tiles
from internvideo_jax.kernels.attention.pallas_tpu.causal.plan import CausalPlan
from internvideo_jax.kernels.attention.pallas_tpu.forward import vmem
from internvideo_jax.kernels.attention.pallas_tpu.plan import LANES
from internvideo_jax.kernels.attention.pallas_tpu.vectors import (
    HIDDEN,
    Ref,
    aligned,
    lane_is_below,
    loop,
    product,
    sees,
    store_extended,
)


class Part(NamedTuple):
    """A tile, and a chunk of keys that it sees.

    Attributes:
      tile: the queries.
      start: of the chunk.
      hidden: so many of the tile's first queries see none of it.
      buffer: which of two its scores are in.
    """

    tile: Tile
    start: int | Array
    hidden: int
    buffer: int


def backward(
    plan: CausalPlan,
    q: Float[Array, "G D N"],
    k: Float[Array, "K D N"],
    v: Float[Array, "K D N"],
    out: Float[Array, "G D N"],
    lse: Float[Array, "G 1 N"],
    d_out: Float[Array, "G D N"],
    d_lse: Float[Array, "G 1 N"] | None,
    interpret: bool | pltpu.InterpretParams,
) -> tuple[Float[Array, "G D N"], Float[Array, "K D N"], Float[Array, "K D N"]]:
    """Gradients of queries, keys and values.

    Args:
      plan: the cut.
      q, k, v: as the forward pass took them.
      out, lse: its results.
      d_out: gradient of `out`.
      d_lse: of the natural log of the sums, if that was asked for.
      interpret: as `pallas_call` takes it.
    """
    of_queries, of_keys, of_lse = specs(plan)
    operands = [q, k, v, out, d_out, lse]
    in_specs = [of_queries, of_keys, of_keys, of_queries, of_queries, of_lse]
    if d_lse is not None:
        operands.append(d_lse)
        in_specs.append(of_lse)
    products = q.shape[0] * plan.tokens**2 // 2
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan, num_operands=len(operands)),
        grid=(k.shape[0], plan.group),
        in_specs=in_specs,
        out_specs=[of_queries, of_keys, of_keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        scratch_shapes=vmem(plan.backward_scratch()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=plan.vmem_bytes("backward"),
        ),
        cost_estimate=pl.CostEstimate(
            flops=10 * products * plan.head_dim,
            transcendentals=products,
            bytes_accessed=4 * (q.nbytes + k.nbytes),
        ),
        interpret=interpret,
        name="causal_attention_backward",
    )(*operands)


def _kernel(
    *refs: Ref,
    plan: CausalPlan,
    num_operands: int,
    queries_ref: Ref,
    d_out_ref: Ref,
    lse_ref: Ref,
    mean_ref: Ref,
    flat_keys_ref: Ref,
    keys_ref: Ref,
    values_ref: Ref,
    scores_ref: Ref,
    d_weights_ref: Ref,
    dq_ref: Ref,
    dk_ref: Ref,
    dv_ref: Ref,
) -> None:
    q_in, k_in, v_in, o_in, do_in, lse_in, *d_lse_in = refs[:num_operands]
    dq_out, dk_out, dv_out = refs[num_operands:]
    d, member = plan.head_dim, pl.program_id(1)

    @pl.when(member == 0)
    def prepare_keys() -> None:
        for by_token, x in ((values_ref, v_in), (keys_ref, k_in)):
            # Values are only passing through.
            store_extended(flat_keys_ref, x, plan.tokens)
            by_token[...] = flat_keys_ref[...].T
        dk_ref[...], dv_ref[...] = jnp.zeros_like(dk_ref), jnp.zeros_like(dv_ref)

    def prepare_queries() -> None:
        d_out, out = (x[...].astype(jnp.float32) for x in (do_in, o_in))
        # The mean of the weights' gradients under the weights, of each query.
        mean, lse = jnp.sum(d_out * out, axis=0, keepdims=True), lse_in[...]
        if d_lse_in:
            mean = mean - d_lse_in[0][...]
        if plan.tokens % LANES:
            exists = lane_is_below(plan.tokens, lse.shape)
            mean, lse = jnp.where(exists, mean, 0), jnp.where(exists, lse, -HIDDEN)
        mean_ref[...], lse_ref[...] = mean, lse
        store_extended(queries_ref, q_in, plan.tokens)
        store_extended(d_out_ref, do_in, plan.tokens)

    def windows(part: Part) -> tuple[Any, Any, Any]:
        """Where the part's keys, queries and scores are."""
        size = part.tile.size - part.hidden
        keys = pl.ds(aligned(part.start), plan.chunk)
        queries = pl.ds(aligned(part.tile.start + part.hidden), size)
        return keys, queries, (part.buffer, slice(None), slice(size))

    def score(part: Part) -> None:
        """The scores of a part, and the gradients of its weights."""
        keys, queries, stored = windows(part)
        scores_ref[stored] = product(keys_ref[keys, :], queries_ref[:, queries])
        d_weights_ref[stored] = product(values_ref[keys, :], d_out_ref[:, queries])

    def differentiate(part: Part, following: Part | None, *, is_diagonal: bool) -> None:
        """Adds up the gradients of a part whose scores are stored; stores the following one's."""
        keys, queries, stored = windows(part)
        query, d_out = queries_ref[:, queries], d_out_ref[:, queries]
        weights = jnp.exp2(scores_ref[stored] * plan.exponent - lse_ref[:, queries])
        if is_diagonal:
            weights = jnp.where(sees(weights.shape), weights, 0)
        d_scores = (weights * (d_weights_ref[stored] - mean_ref[:, queries])).astype(query.dtype)
        if following:
            score(following)
        dv_ref[:, keys] += product(d_out, weights.astype(query.dtype), transposed=True)
        dk_ref[:, keys] += product(query, d_scores, transposed=True)
        dq_ref[:, part.hidden : part.tile.size] += product(flat_keys_ref[:, keys], d_scores)

    def step(tile: Tile, following: Tile | None) -> None:
        """All parts of a tile whose first scores are stored; stores the following tile's."""
        dq_ref[:, : tile.size] = jnp.zeros((plan.rows, tile.size), jnp.float32)

        def run_block(number: Any, carry: tuple[()]) -> tuple[()]:
            starts = enumerate(range(0, plan.tile, plan.chunk))
            parts = [Part(tile, number * plan.tile + start, 0, i % 2) for i, start in starts]
            after = Part(tile, (number + 1) * plan.tile, 0, 0)
            for part, next_part in zip(parts, [*parts[1:], after], strict=True):
                differentiate(part, next_part, is_diagonal=False)
            return carry

        loop(tile.start // plan.tile, run_block, ())
        starts = enumerate(range(0, tile.size, plan.chunk))
        parts = [Part(tile, tile.start + start, start, i % 2) for i, start in starts]
        after = Part(following, 0, 0, 0) if following else None
        for part, next_part in zip(parts, [*parts[1:], after], strict=True):
            differentiate(part, next_part, is_diagonal=True)
        dq = dq_ref[:d, : tile.size] * plan.scale
        dq_out[:, pl.ds(tile.start, tile.size)] = dq.astype(dq_out.dtype)

    def tile_at(number: int | Array) -> Tile:
        return Tile(aligned(number * plan.tile), plan.tile)

    def run_tile(number: Any, carry: tuple[()]) -> tuple[()]:
        step(tile_at(number), tile_at(number + 1))
        return carry

    prepare_queries()
    score(Part(tile_at(0), 0, 0, 0))
    loop(plan.full_tiles - 1, run_tile, ())
    ends = tiles(plan)
    for tile, following in zip(ends, [*ends[1:], None], strict=True):
        step(tile, following)

    @pl.when(member == plan.group - 1)
    def store_gradients() -> None:
        dk_out[...] = (dk_ref[:d] * plan.scale).astype(dk_out.dtype)
        dv_out[...] = dv_ref[:d].astype(dv_out.dtype)
