"""Cutting an attention call into blocks of heads and tiles of query rows, and putting it together.

Inside a block arrays lie head by head: keys [h, M, D], and per tile of c rows queries [h, c, D],
scores [h, c, M], where h counts key-value heads. Tiles run over the query heads of a group and
over the rows of each; the last rows may be padding, which is dropped when results are stored.
"""

from dataclasses import dataclass
from typing import Self

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from internvideo_jax.kernels.attention.masks import Masks, dropout_keep, visible
from internvideo_jax.kernels.attention.request import Request

# Scores of one tile. On a CPU: few enough to stay in the last-level cache, so many that starting
# and joining threads does not count (6 MiB: 683 rows of 2049 keys). On a TPU: few enough for its
# fast memory (32 MiB; by the compiler's estimate for v5e, 16 clips of 2048 tokens in 16 heads take
# 17.5 ms, with 128 MiB 30.7 ms). Elsewhere a tile should keep the device busy (128 MiB).
_CPU_TILE_SCORES = 6 * 2**18
_TPU_TILE_SCORES = 2**23
_TILE_SCORES = 2**25
# With fewer rows the matrix products become slow.
_MIN_ROWS = 128


@dataclass(frozen=True)
class Tiling:
    """How a call is cut: `kv_heads` per block, `tiles` of `rows` queries per query head."""

    kv_heads: int
    rows: int
    tiles: int


def tiling(request: Request) -> Tiling:
    """All queries of as many heads as a tile may hold, or else some queries of one head."""
    of_platform = {"cpu": _CPU_TILE_SCORES, "tpu": _TPU_TILE_SCORES}
    scores = of_platform.get(request.platform, _TILE_SCORES)
    rows = max(_MIN_ROWS, scores // request.keys)
    tiles = -(-request.queries // rows)
    heads = [n for n in range(1, request.kv_heads + 1) if request.kv_heads % n == 0]
    return Tiling(
        kv_heads=max(n for n in heads if n == 1 or n * request.queries <= rows),
        rows=-(-request.queries // tiles),
        tiles=tiles,
    )


def block_indices(request: Request) -> Int[Array, " b"]:
    """The indices of a call's blocks, to be given to `Block.at` one by one."""
    return jnp.arange(request.batch * (request.kv_heads // tiling(request).kv_heads))


def split_bias(request: Request, bias: Array | None) -> Float[Array, "#B #Hkv #G P M"] | None:
    """A bias by groups of heads, its rows padded to whole tiles."""
    if bias is None:
        return None
    examples, heads, n, m = bias.shape
    cut = tiling(request)
    split = (1, 1) if heads == 1 else (request.kv_heads, request.group)
    padding = cut.rows * cut.tiles - n
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, padding), (0, 0)))
    return bias.reshape(examples, *split, n + padding, m)


@dataclass(frozen=True)
class Block:
    """Some key-value heads of one example, with all their query heads."""

    request: Request
    tiling: Tiling
    bias: Float[Array, "#B #Hkv #G P M"] | None
    masks: Masks
    example: Int[Array, ""]
    first_head: Int[Array, ""]

    @classmethod
    def at(cls, index: Int[Array, ""], request: Request, bias: Array | None, masks: Masks) -> Self:
        """A block of a call whose bias `split_bias` has split."""
        cut = tiling(request)
        per_example = request.kv_heads // cut.kv_heads
        first_head = index % per_example * cut.kv_heads
        return cls(request, cut, bias, masks, index // per_example, first_head)

    @property
    def tiles(self) -> Int[Array, " t"]:
        """The indices of the tiles, to be given to the other methods one by one."""
        return jnp.arange(self.request.group * self.tiling.tiles)

    def keys(self, x: Float[Array, "B M Hkv D"]) -> Float[Array, "h M D"]:
        """This block's part of the keys or values, in float32."""
        size = (1, x.shape[1], self.tiling.kv_heads, x.shape[3])
        part = lax.dynamic_slice(x, (self.example, 0, self.first_head, 0), size)
        return part[0].swapaxes(0, 1).astype(jnp.float32)

    def store_keys(
        self, whole: Float[Array, "B M Hkv D"], part: Float[Array, "h D M"]
    ) -> Float[Array, "B M Hkv D"]:
        """Writes this block's gradient of keys or values, which is summed transposed."""
        part = part.transpose(2, 0, 1)[None].astype(whole.dtype)
        return lax.dynamic_update_slice(whole, part, (self.example, 0, self.first_head, 0))

    def queries(self, x: Float[Array, "B N H E"]) -> Float[Array, "h t c E"]:
        """This block's part of an array with a row per query, cut into tiles, in float32."""
        cut, group = self.tiling, self.request.group
        n, width = x.shape[1], x.shape[3]
        start = (self.example, 0, self.first_head * group, 0)
        part = lax.dynamic_slice(x, start, (1, n, cut.kv_heads * group, width))[0]
        part = part.swapaxes(0, 1).astype(jnp.float32)
        part = jnp.pad(part, ((0, 0), (0, cut.rows * cut.tiles - n), (0, 0)))
        return part.reshape(cut.kv_heads, group * cut.tiles, cut.rows, width)

    def store_queries(
        self, whole: Float[Array, "B N H E"], part: Float[Array, "t h c E"]
    ) -> Float[Array, "B N H E"]:
        """Writes the rows that a scan over the tiles has stacked."""
        n, width = whole.shape[1], whole.shape[3]
        part = part.swapaxes(0, 1).reshape(-1, self.tiling.tiles * self.tiling.rows, width)
        part = part[:, :n].swapaxes(0, 1)[None].astype(whole.dtype)
        start = (self.example, 0, self.first_head * self.request.group, 0)
        return lax.dynamic_update_slice(whole, part, start)

    def scores(
        self, queries: Float[Array, "h c D"], keys: Float[Array, "h M D"], tile: Int[Array, ""]
    ) -> Float[Array, "h c M"]:
        """The scores of a tile: with bias, and -inf where a key must not be seen."""
        scores = jnp.einsum("hcd,hmd->hcm", queries, keys)
        if self.bias is not None:
            bias = lax.dynamic_slice(self.bias, *self._bias_tile(self.bias, tile))[0, :, 0]
            scores = scores + bias.astype(jnp.float32)
        rows, masks = self._rows(tile), self.masks.of_example(self.example)
        if masks.segment_ids is not None:
            of_queries, of_keys = masks.segment_ids
            of_rows = of_queries.at[rows].get(mode="fill", fill_value=0)
            masks = masks._replace(segment_ids=(of_rows, of_keys))
        allowed = visible(rows, self.request.keys, masks)
        return scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)

    def dropout(self, x: Float[Array, "h c M"], tile: Int[Array, ""]) -> Float[Array, "h c M"]:
        """Drops and rescales a tile's weights, or their gradients."""
        dropout, rate = self.masks.dropout, self.request.dropout_rate
        if dropout is None:
            return x
        group_member = tile // self.tiling.tiles
        kv_heads = self.first_head + jnp.arange(self.tiling.kv_heads)
        heads = (kv_heads * self.request.group + group_member)[:, None]
        rows = self._rows(tile)
        keep = dropout_keep(dropout, self.example, heads, rows, self.request.keys, rate)
        return jnp.where(keep, x / (1 - rate), 0)

    def add_bias_gradient(
        self, total: Array | None, d_scores: Float[Array, "h c M"], tile: Int[Array, ""]
    ) -> Float[Array, "#B #Hkv #G P M"] | None:
        """Adds a tile's gradient of the scores to that of the bias."""
        if total is None:
            return None
        start, size = self._bias_tile(total, tile)
        if size[1] == 1:
            d_scores = jnp.sum(d_scores, axis=0, keepdims=True)
        part = lax.dynamic_slice(total, start, size) + d_scores[None, :, None]
        return lax.dynamic_update_slice(total, part, start)

    def _rows(self, tile: Int[Array, ""]) -> Int[Array, " c"]:
        return tile % self.tiling.tiles * self.tiling.rows + jnp.arange(self.tiling.rows)

    def _bias_tile(
        self, bias: Float[Array, "#B #Hkv #G P M"], tile: Int[Array, ""]
    ) -> tuple[tuple[Array | int, ...], tuple[int, ...]]:
        """Start and size of a tile's part of a bias; axes that are broadcast have size 1."""
        examples, heads, members = bias.shape[:3]
        start = (
            self.example if examples > 1 else 0,
            self.first_head if heads > 1 else 0,
            tile // self.tiling.tiles if members > 1 else 0,
            tile % self.tiling.tiles * self.tiling.rows,
            0,
        )
        return start, (1, min(heads, self.tiling.kv_heads), 1, self.tiling.rows, bias.shape[4])
