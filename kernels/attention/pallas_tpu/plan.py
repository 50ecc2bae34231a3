"""How one pass of one call is cut into heads, tiles of queries and chunks of keys.

Tokens lie along the 128 lanes of a register, the head's channels along its rows. Queries are cut
into tiles, keys into chunks, whose last one is rounded up to 16 rows. A class token makes a length
one more than a multiple of 128: such a last token is set apart, as a query and as a key, since
it would cost as much as 128 of them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from internvideo_jax.kernels.attention.pallas_tpu.table import (
    Sizes,
    generation,
    has_one_core,
    sizes_for,
    vmem_budget,
)
from internvideo_jax.kernels.attention.request import Request

LANES = 128
# Rows of a register of bfloat16.
ROWS = 16

Shapes = Mapping[str, tuple[tuple[int, ...], str]]


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class Plan:
    """A cut.

    Attributes:
      queries, keys: N, M.
      head_dim: D, a multiple of 8.
      dtype: of all operands, "bfloat16" or "float32".
      scale: factor on the scores, above zero.
      heads: in one step of the grid.
      group: query heads that share a key-value head; if more than one, `heads` is 1.
      tile: queries computed together.
      chunk: keys whose scores are made at once.
      exact_lse: whether sums are exact to float32. Else those of bfloat16 weights are rounded as
        the weights are, which suits the output and gradients.
      split_keys: whether keys carry the exponent into the scores; see `Sizes`.
      in_order: whether the steps of the grid run one after the other, on one core.
    """

    queries: int
    keys: int
    head_dim: int
    dtype: str
    scale: float
    heads: int
    group: int
    tile: int
    chunk: int
    exact_lse: bool = False
    split_keys: bool = False
    in_order: bool = False

    @property
    def exponent(self) -> float:
        """Factor on the scores for exponentials to the base 2, which are what the chip has.

        It is applied to scores in float32: queries that were scaled before would be rounded twice.
        """
        return self.scale * math.log2(math.e)

    @property
    def odd_query(self) -> bool:
        """Whether the last query is set apart."""
        return _is_odd(self.queries)

    @property
    def odd_key(self) -> bool:
        """Whether the last key is set apart."""
        return _is_odd(self.keys)

    @property
    def query_lanes(self) -> int:
        """Queries and padding of a head, in whole registers."""
        return round_up(self.queries, LANES)

    @property
    def key_lanes(self) -> int:
        """Keys and padding of a head, in whole registers."""
        return round_up(self.keys, LANES)

    @property
    def full_tiles(self) -> int:
        """Tiles of `tile` queries, at least one."""
        return self._tiled_lanes // self.tile

    @property
    def rest(self) -> int:
        """Queries of a last, smaller tile; 0 without."""
        return self._tiled_lanes % self.tile

    @property
    def _tiled_lanes(self) -> int:
        return self.query_lanes - LANES * self.odd_query

    @property
    def visible(self) -> int:
        """Keys in chunks: all but one that is set apart."""
        return self.keys - self.odd_key

    @property
    def chunks(self) -> tuple[slice, ...]:
        """Where chunks lie among the keys; of the last one, the end may lie beyond."""
        starts = range(0, self.visible, self.chunk)
        ends = (min(i + self.chunk, round_up(self.visible, ROWS)) for i in starts)
        return tuple(map(slice, starts, ends))

    @property
    def folded(self) -> bool:
        """Whether operands have eight spare rows, which carry sums through matrix products free."""
        return self.dtype == "bfloat16" and self.head_dim % ROWS != 0

    @property
    def rows(self) -> int:
        """D, with the spare rows."""
        return self.head_dim + 8 * self.folded

    @property
    def lags(self) -> bool:
        """Whether a step of the forward pass makes the outputs whose scores the one before made.

        Else a step of few short heads spends much of its time on its first scores, and on its last
        outputs. Heads are one tile, and what a step leaves to the next is kept for each.
        """
        is_one_tile = self.full_tiles == 1 and not (self.rest or self.odd_query or self.odd_key)
        return self.in_order and self.group == 1 and is_one_tile

    @property
    def buffers(self) -> int:
        """Two, if one head is made ready while another is computed."""
        return min(self.heads, 2)

    @property
    def plain_queries(self) -> bool:
        """Whether tiles may be read as they came: no spare rows and no padding."""
        return not self.folded and (self.queries % LANES == 0 or self.odd_query)

    @property
    def plain_keys(self) -> bool:
        """Whether chunks may be read as they came."""
        return not self.folded and (self.keys % LANES == 0 or self.odd_key)

    def forward_scratch(self) -> Shapes:
        """Vector memory of the forward pass, beside its operands."""
        channels = self.head_dim * (1 + self.split_keys)
        buffers, tiles = (self.heads, self.heads) if self.lags else (self.buffers, 1)
        return {
            "keys_ref": ((buffers, self.key_lanes, channels), self.dtype),
            "values_ref": ((buffers, self.rows, self.key_lanes), self.dtype),
            "scores_ref": ((tiles, round_up(self.visible, ROWS), self.tile), "float32"),
            "largest_ref": ((tiles, 1, self.tile), "float32"),
        }

    def backward_scratch(self) -> Shapes:
        """Vector memory of the backward pass, beside its operands."""
        tile = ((2, self.chunk, self.tile), "float32")
        by_row = ((self.buffers, self.key_lanes, self.rows), self.dtype)
        query_row = ((self.buffers, 1, self.query_lanes), "float32")
        queries = ((self.buffers, self.rows, self.query_lanes), self.dtype)
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "keys_ref": by_row,
            "values_ref": by_row,
            "lse_ref": query_row,
            "mean_ref": query_row,
            "scores_ref": tile,
            "d_weights_ref": tile,
            "dk_ref": ((self.rows, self.key_lanes), "float32"),
            "dv_ref": ((self.rows, self.key_lanes), "float32"),
        }
        if not self.plain_queries:
            shapes |= {"queries_ref": queries, "d_out_ref": queries}
        if not self.plain_keys:
            shapes["flat_keys_ref"] = ((self.buffers, self.rows, self.key_lanes), self.dtype)
        return shapes

    def vmem_bytes(self, name: str) -> int:
        """Vector memory that a pass needs: operands twice, as the next step's are on their way."""
        per_query, per_key, scratch = {
            "forward": (2, 2, self.forward_scratch()),
            "backward": (4, 4, self.backward_scratch()),
        }[name]
        operands = [((self.heads, self.head_dim, self.query_lanes), self.dtype)] * per_query
        operands += [((self.heads, self.head_dim, self.key_lanes), self.dtype)] * per_key
        operands += [((self.heads, 1, self.query_lanes), "float32")] * 2
        blocks = sum(padded_bytes(*x) for x in operands)
        # Values between two instructions that find no register.
        return 2 * blocks + sum(padded_bytes(*x) for x in scratch.values()) + 6 * 2**20


def make_plan(
    request: Request, name: str, sizes: Sizes | None = None, chip: str | None = None
) -> Plan:
    """The cut of a pass of a call.

    Args:
      request: what is asked.
      name: of the pass, "forward" or "backward".
      sizes: other ones than the table's.
      chip: the generation of TPU; that of code traced now by default.

    Raises:
      ValueError: no cut fits into the vector memory.
    """
    head_dim = round_up(request.head_dim, 8)
    chip = generation() if chip is None else chip
    sizes = sizes or sizes_for(name, max(request.queries, request.keys), head_dim, chip)
    total = request.batch * request.heads
    heads = sizes.heads if request.group == 1 else 1
    plan = Plan(
        request.queries,
        request.keys,
        head_dim,
        request.dtype,
        request.scale,
        heads=max(n for n in range(1, heads + 1) if total % n == 0),
        group=request.group,
        tile=sizes.tile,
        chunk=sizes.chunk,
        exact_lse=request.return_lse,
        in_order=has_one_core(chip) or (request.platform == "cpu" and not chip),
    )
    is_plain = plan.dtype == "bfloat16" and not (plan.folded or plan.exact_lse)
    plan = replace(
        plan,
        tile=min(plan.tile, plan._tiled_lanes),
        split_keys=sizes.split_keys and is_plain and head_dim <= 128,
    )
    budget = vmem_budget(request.platform)
    for smaller in _ever_smaller(plan):
        if smaller.vmem_bytes(name) <= budget:
            return smaller
    raise ValueError(
        f"all keys and values of a head must fit into {budget // 2**20} MiB of vector memory, the"
        f" {name} pass of {request.queries} queries and {request.keys} keys needs"
        f" {smaller.vmem_bytes(name) / 2**20:.0f}"
    )


def _ever_smaller(plan: Plan) -> Iterator[Plan]:
    yield plan
    yield (plan := replace(plan, heads=1))
    while plan.tile > LANES:
        plan = replace(plan, tile=round_up(plan.tile // 2, LANES))
        yield plan


def _is_odd(length: int) -> bool:
    return length > LANES and length % LANES == 1


def padded_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Of an array in whole registers."""
    size = {"bfloat16": 2, "float32": 4}[dtype]
    *outer, rows, lanes = shape
    return math.prod(outer) * round_up(rows, 32 // size) * round_up(lanes, LANES) * size
