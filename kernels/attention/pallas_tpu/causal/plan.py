"""How causal attention is cut: tiles of queries, and the chunks of keys that a tile sees.

A tile sees as many blocks of keys, each as long as a tile, as tiles come before it, whole. Behind
them lies the diagonal: the chunks of its own tokens. Of these the tile's queries see the ones that
begin before them, hence a chunk of the diagonal has the fewer queries the further behind it lies,
and half of a square of scores is hidden at its beginning.
"""

import math
from dataclasses import dataclass, replace

from internvideo_jax.kernels.attention.pallas_tpu.plan import (
    LANES,
    ROWS,
    Shapes,
    padded_bytes,
    round_up,
)
from internvideo_jax.kernels.attention.pallas_tpu.table import vmem_budget
from internvideo_jax.kernels.attention.request import Request

# Powers of two; the chunk becomes smaller where the last tile holds no whole ones.
TILE, CHUNK = 512, 256


@dataclass(frozen=True)
class CausalPlan:
    """A cut.

    Attributes:
      tokens: N, of queries and keys.
      head_dim: D, a multiple of 8.
      dtype: of all operands, "bfloat16" or "float32".
      scale: factor on the scores, above zero.
      group: query heads that share a key-value head.
      tile: queries computed together.
      chunk: keys whose scores are made at once; tiles hold whole chunks.
    """

    tokens: int
    head_dim: int
    dtype: str
    scale: float
    group: int
    tile: int
    chunk: int

    @property
    def exponent(self) -> float:
        """Factor on the scores for exponentials to the base 2, which are what the chip has."""
        return self.scale * math.log2(math.e)

    @property
    def lanes(self) -> int:
        """Tokens and padding, in whole registers."""
        return round_up(self.tokens, LANES)

    @property
    def rows(self) -> int:
        """Channels and padding, in whole registers."""
        return round_up(self.head_dim, ROWS)

    @property
    def full_tiles(self) -> int:
        """Tiles of `tile` queries, at least one."""
        return self.lanes // self.tile

    @property
    def rest(self) -> int:
        """Queries of a last, smaller tile; 0 without."""
        return self.lanes % self.tile

    def forward_scratch(self) -> Shapes:
        """Vector memory of the forward pass, beside its operands."""
        return {
            "keys_ref": ((self.lanes, self.head_dim), self.dtype),
            "values_ref": ((self.rows, self.lanes), self.dtype),
            "scores_ref": ((self.lanes, self.tile), "float32"),
            "out_ref": ((self.rows, self.tile), "float32"),
        }

    def backward_scratch(self) -> Shapes:
        """Vector memory of the backward pass, beside its operands."""
        by_channel, by_token = (self.rows, self.lanes), (self.lanes, self.rows)
        row, part = (1, self.lanes), (2, self.chunk, self.tile)
        return {
            "queries_ref": (by_channel, self.dtype),
            "d_out_ref": (by_channel, self.dtype),
            "lse_ref": (row, "float32"),
            "mean_ref": (row, "float32"),
            "flat_keys_ref": (by_channel, self.dtype),
            "keys_ref": (by_token, self.dtype),
            "values_ref": (by_token, self.dtype),
            "scores_ref": (part, "float32"),
            "d_weights_ref": (part, "float32"),
            "dq_ref": ((self.rows, self.tile), "float32"),
            "dk_ref": (by_channel, "float32"),
            "dv_ref": (by_channel, "float32"),
        }

    def vmem_bytes(self, name: str) -> int:
        """Vector memory that a pass needs: operands twice, as the next step's are on their way."""
        operands, scratch = {
            "forward": (4, self.forward_scratch()),
            "backward": (8, self.backward_scratch()),
        }[name]
        blocks = operands * padded_bytes((self.head_dim, self.lanes), self.dtype)
        blocks += 2 * padded_bytes((1, self.lanes), "float32")
        # Values between two instructions that find no register.
        return 2 * blocks + sum(padded_bytes(*x) for x in scratch.values()) + 6 * 2**20


def make_causal_plan(request: Request, name: str) -> CausalPlan:
    """The cut of a pass of a call.

    Args:
      request: what is asked, of as many queries as keys.
      name: of the pass, "forward" or "backward".

    Raises:
      ValueError: no cut fits into the vector memory.
    """
    budget, tile = vmem_budget(request.platform), TILE
    while (needed := (plan := _cut(request, tile)).vmem_bytes(name)) > budget:
        if tile == LANES:
            raise ValueError(
                f"all keys and values of a head must fit into {budget // 2**20} MiB of vector"
                f" memory, the {name} pass of {request.queries} causal queries needs"
                f" {needed / 2**20:.0f}"
            )
        tile //= 2
    return plan


def _cut(request: Request, tile: int) -> CausalPlan:
    plan = CausalPlan(
        request.queries,
        round_up(request.head_dim, 8),
        request.dtype,
        request.scale,
        request.group,
        tile=min(tile, round_up(request.queries, LANES)),
        chunk=CHUNK,
    )
    return replace(plan, chunk=math.gcd(plan.tile, plan.rest, plan.chunk))
