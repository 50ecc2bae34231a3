"""Which keys a query may see, and which probabilities dropout keeps.

Both are functions of absolute indices, so that an implementation may compute them for any tile
and all implementations agree.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32


class Dropout(NamedTuple):
    """What decides which probabilities a call drops.

    Attributes:
      seed: two random words.
      origin: example, head and query that the call's first row has in the whole of which the call
        may be a part.
    """

    seed: UInt32[Array, "2"]
    origin: Int[Array, "3"]


class Masks(NamedTuple):
    """The operands of a call without a gradient; None for what it does not use.

    Attributes:
      segment_ids: of the queries and of the keys; only equal ones see each other.
      kv_lengths: how many leading keys exist.
      query_offset: where query 0 lies among the keys; None when attention is not causal.
      dropout: what is dropped.
    """

    segment_ids: tuple[Int[Array, "*b N"], Int[Array, "*b M"]] | None = None
    kv_lengths: Int[Array, "*b"] | None = None
    query_offset: Int[Array, "*#b"] | None = None
    dropout: Dropout | None = None

    def of_example(self, index: Int[Array, ""]) -> "Masks":
        """Those of one example, without the leading axis."""
        segment_ids, lengths = jax.tree.map(lambda x: x[index], (self.segment_ids, self.kv_lengths))
        offset = self.query_offset
        if offset is not None and offset.ndim:
            offset = offset[index]
        return Masks(segment_ids, lengths, offset, self.dropout)


def visible(rows: Int[Array, " n"], num_keys: int, masks: Masks) -> Bool[Array, "*#b #n M"] | None:
    """The keys that some rows of queries may see; None when nothing is hidden.

    Args:
      rows: the queries' indices.
      num_keys: M.
      masks: with the segments of these queries and of all keys.
    """
    keys = jnp.arange(num_keys)
    conditions = []
    if masks.query_offset is not None:
        conditions.append(keys <= rows[:, None] + masks.query_offset[..., None, None])
    if masks.segment_ids is not None:
        of_queries, of_keys = masks.segment_ids
        conditions.append(of_queries[..., :, None] == of_keys[..., None, :])
    if masks.kv_lengths is not None:
        conditions.append(keys < masks.kv_lengths[..., None, None])
    return reduce(jnp.logical_and, conditions) if conditions else None


def dropout_keep(
    dropout: Dropout,
    examples: Int[Array, "*#r"],
    heads: Int[Array, "*#r"],
    rows: Int[Array, "*#r"],
    num_keys: int,
    rate: float,
) -> Bool[Array, "*r M"]:
    """Which probabilities survive dropout: each with probability 1 - rate.

    A hash of (seed, example, head, row, key) instead of a stream of random numbers: it is the same
    whatever tile or shard it is computed for, costs a few integer operations inside the surrounding
    fusion, and needs no memory between the forward and the backward pass.

    Args:
      dropout: the seed, and where the call lies.
      examples, heads, rows: indices within the call, of shapes that broadcast together.
      num_keys: M.
      rate: probability of being dropped, in [0, 1).
    """
    example, head, row = (
        (index + first).astype(jnp.uint32)
        for index, first in zip((examples, heads, rows), dropout.origin, strict=True)
    )
    row = _scramble(row ^ dropout.seed[0])
    matrix = _scramble(_scramble(example ^ dropout.seed[1]) ^ head)
    # The odd multiplier (2^32 over the golden ratio) sets neighbouring keys far apart.
    key = jnp.arange(num_keys, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9) + matrix[..., None]
    bits = _scramble(row[..., None] ^ key)
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _scramble(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (32 bits), a bijection in which every bit affects every bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
