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


def visible(
    rows: Int[Array, " n"],
    num_keys: int,
    *,
    query_offset: Int[Array, "*b"] | None,
    segment_ids: tuple[Int[Array, "*b n"], Int[Array, "*b M"]] | None,
    kv_lengths: Int[Array, "*b"] | None,
) -> Bool[Array, "*#b #n M"] | None:
    """The keys that some rows of queries may see; None when nothing is hidden.

    Args:
      rows: the queries' indices.
      num_keys: M.
      query_offset: where query 0 lies among the keys; None when attention is not causal.
      segment_ids: of these queries and of all keys; only equal ones see each other.
      kv_lengths: how many leading keys exist.
    """
    keys = jnp.arange(num_keys)
    conditions = []
    if query_offset is not None:
        conditions.append(keys <= rows[:, None] + query_offset[..., None, None])
    if segment_ids is not None:
        conditions.append(segment_ids[0][..., :, None] == segment_ids[1][..., None, :])
    if kv_lengths is not None:
        conditions.append(keys < kv_lengths[..., None, None])
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
