"""What both passes do with registers, inside a kernel."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from internvideo_jax.kernels.attention.pallas_tpu.plan import LANES, ROWS

# A window on vector memory; Pallas has no one type for it.
Ref = Any

# The score of a key that does not exist: finite, so that no difference of two is NaN.
HIDDEN = -1e30


def product(
    a: Float[Array, "m k"], b: Float[Array, "k n"], *, transposed: bool = False
) -> Float[Array, "m n"]:
    """a b, or a bᵀ, in float32."""
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    contract = ((1,), (1 if transposed else 0,))
    return lax.dot_general(
        a, b, (contract, ((), ())), precision=exact, preferred_element_type=jnp.float32
    )


def loop(count: int | Array, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """`fori_loop` from 0, which is none for a count that is known and below two."""
    if not isinstance(count, int) or count > 1:
        return lax.fori_loop(0, count, body, carry)
    return body(0, carry) if count == 1 else carry


class Head(NamedTuple):
    """One of the heads of a step.

    Attributes:
      number: among them.
      buffer: which of two it has, for while one head is computed the next is made ready. It is
        known when the kernel is compiled, hence also that one does not touch the other's.
    """

    number: int | Array
    buffer: int


def loop_over_heads(count: int, run: Callable[[Head, Head | None, Any], Any], carry: Any) -> Any:
    """Calls run(head, the following one or None, carry) for each, in a loop over pairs."""
    pairs = (count - 1) // 2

    def run_pair(pair: Any, carry: Any) -> Any:
        first, second, third = (Head(2 * pair + i, i % 2) for i in range(3))
        return run(second, third, run(first, second, carry))

    carry = loop(pairs, run_pair, carry)
    for number in range(2 * pairs, count):
        following = Head(number + 1, (number + 1) % 2) if number + 1 < count else None
        carry = run(Head(number, number % 2), following, carry)
    return carry


def fold_rows(x: Float[Array, "m n"], fold: Callable[..., Array]) -> Float[Array, "8 n"]:
    """A sum or maximum of the registers that lie below each other; m is a multiple of 8."""
    return fold(x.reshape(-1, 8, x.shape[1]), axis=0)


def fold_lanes(x: Float[Array, "m n"]) -> Float[Array, "m 128"]:
    """The sum of the registers that lie beside each other."""
    return sum(x[:, i : i + LANES] for i in range(LANES, x.shape[1], LANES)) + x[:, :LANES]


def lane_is_below(limit: int, shape: tuple[int, ...]) -> Array:
    """Which lanes of registers [m, n] hold a token."""
    return lax.broadcasted_iota(jnp.int32, shape, 1) < limit


def sees(shape: tuple[int, ...]) -> Bool[Array, "m n"]:
    """Which keys, along the rows, queries that begin where they do may see: up to themselves."""
    key, query = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    return key <= query


def store_scores(ref: Ref, scores: Float[Array, "m n"], visible: int) -> Float[Array, "8 n"]:
    """Stores the scores of a chunk, and hides those of keys that do not exist.

    Args:
      ref: [m, n] and more.
      scores: m is a multiple of 16.
      visible: how many of the keys exist; more than m - 16.

    Returns:
      Their maximum over the registers.
    """
    size, n = scores.shape
    if visible >= size:
        ref[:size, :n] = scores
        return fold_rows(scores, jnp.max)
    whole = size - ROWS
    row = lax.broadcasted_iota(jnp.int32, (ROWS, n), 0)
    last = jnp.where(row < visible - whole, scores[whole:], HIDDEN)
    ref[whole:size, :n] = last
    largest = fold_rows(last, jnp.max)
    if whole:
        ref[:whole, :n] = scores[:whole]
        largest = jnp.maximum(largest, fold_rows(scores[:whole], jnp.max))
    return largest


def store_extended(
    ref: Ref, x: Ref, size: int, spare: Sequence[Float[Array, "1 L"] | float] = ()
) -> None:
    """Copies [D, L] to [D or D + 8, L] with zeros in the lanes without a token.

    Args:
      ref: where to.
      x: from.
      size: how many lanes hold a token.
      spare: the first of the spare rows, if there are any.
    """
    d, lanes = x.shape
    whole = size // LANES * LANES
    for start, stop in ((0, whole), (whole, lanes)):
        if start == stop:
            continue
        block = x[:, start:stop]
        if size < stop:
            wide = block.astype(jnp.float32)
            wide = jnp.where(lane_is_below(size - start, block.shape), wide, 0)
            block = wide.astype(block.dtype)
        if ref.shape[0] == d:
            ref[:, start:stop] = block
            continue
        # Two rows of bfloat16 share a register's row, so the half register at the end goes with
        # the spare rows.
        base = d // ROWS * ROWS
        if base:
            ref[:base, start:stop] = block[:base]
        row = lax.broadcasted_iota(jnp.int32, (8, stop - start), 0)
        below = jnp.zeros(row.shape, jnp.float32)
        for i, value in enumerate(spare):
            value = value if isinstance(value, float) else value[:, start:stop]
            below = jnp.where(row == i, value, below)
        last = jnp.concatenate([block.astype(jnp.float32)[base:], below], axis=0)
        ref[base:, start:stop] = last.astype(ref.dtype)


def split_in_two(x: Float[Array, "m n"], dtype: Any) -> Float[Array, "k n"]:
    """Numbers of bfloat16 and, below them, what these lack: sums of two have 16 bits."""
    high = x.astype(dtype)
    return jnp.concatenate([high, (x - high.astype(jnp.float32)).astype(dtype)], axis=0)


def split_in_three(x: Float[Array, "1 L"]) -> list[Float[Array, "1 L"]]:
    """Numbers of bfloat16's precision whose sum is x: 3 × 8 bits are all that float32 has."""
    parts = []
    for _ in range(3):
        part = x.astype(jnp.bfloat16).astype(jnp.float32)
        parts.append(part)
        x = x - part
    return parts


def from_lane(first: int, combine: Callable[..., Array], x: Array | None, y: Array) -> Array:
    """x `[m, n]` combined with y `[m, n - first]` in its lanes from the first on; y without x."""
    if x is None:
        return y
    if first == 0:
        return combine(x, y)
    return jnp.concatenate([x[:, :first], combine(x[:, first:], y)], axis=1)


def aligned(start: int | Array) -> Any:
    """Tells the compiler that lanes or rows begin with a register."""
    return start if isinstance(start, int) else pl.multiple_of(start, LANES)


def add(total: Array | None, x: Array) -> Array:
    """A running sum that begins with nothing."""
    return x if total is None else total + x
