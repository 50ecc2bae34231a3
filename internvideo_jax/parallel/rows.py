"""Rows of a split array by their numbers, from whatever devices hold them: these rows travel alone.

Devices ask each other for rows and answer, in rounds of so many rows for each pair of devices, of
which there are as many as the busiest pair needs. The gradient takes the same way back.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from internvideo_jax.parallel.sharding import Split


def take_rows(
    x: Shaped[Array, "b ..."], rows: Int[Array, " b"], split: Split
) -> Shaped[Array, "b ..."]:
    """Rows of an array whose first dimension is split; for functions under `shard_map_logical`.

    Args:
      x: this device's rows.
      rows: numbers, in the whole array, of the rows that it wants, as many as it has.
      split: how the array is cut.

    Returns:
      These rows.
    """
    return x[rows] if split.parts == 1 else _take(x, rows, split)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _take(x: Array, rows: Array, split: Split) -> Array:
    def answer(taken: Array, slots: Array, asked: Array) -> Array:
        answers = _exchange(x.at[asked].get(mode="fill", fill_value=0), split)
        found = answers.at[slots].get(mode="fill", fill_value=0)
        is_answered = (slots < len(answers)).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(is_answered, found, taken)

    return _in_rounds(answer, jnp.zeros_like(x), rows, split)


def _forward(x: Array, rows: Array, split: Split) -> tuple[Array, Array]:
    return _take(x, rows, split), rows


def _backward(split: Split, rows: Array, gradient: Array) -> tuple[Array, None]:
    def give_back(total: Array, slots: Array, asked: Array) -> Array:
        sent = jnp.zeros((len(asked), *gradient.shape[1:]), gradient.dtype)
        sent = sent.at[slots].set(gradient, mode="drop")
        return total.at[asked].add(_exchange(sent, split).astype(total.dtype), mode="drop")

    # Many devices may have taken the same row.
    dtype = jnp.promote_types(gradient.dtype, jnp.float32)
    total = _in_rounds(give_back, jnp.zeros(gradient.shape, dtype), rows, split)
    return total.astype(gradient.dtype), None


_take.defvjp(_forward, _backward)


def _in_rounds(
    do: Callable[[Array, Array, Array], Array], start: Array, rows: Array, split: Split
) -> Array:
    """Folds `do(value, slots, asked)` over the rounds, from `start` on.

    Of the slots of a round, `slots` `[b]` are those that this device's wanted rows come in, beyond
    the last one where they come in another round; `asked` `[slots]` are the numbers of its own rows
    that the others want, b where they want none.
    """
    size = len(rows)
    # Twice the mean: mostly one round, or few where there are more devices than rows.
    capacity = -(-2 * size // split.parts)
    num_slots = split.parts * capacity
    owners = rows // size
    is_to = owners[:, None] == jnp.arange(split.parts)
    places = jnp.cumsum(is_to, axis=0)[jnp.arange(size), owners] - 1
    last = jax.lax.pmax(places.max() // capacity, split.mesh_axes)

    def round_(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        number, value = carry
        is_now = places // capacity == number
        slots = jnp.where(is_now, owners * capacity + places % capacity, num_slots)
        questions = jnp.full(num_slots, size, rows.dtype).at[slots].set(rows % size, mode="drop")
        return number + 1, do(value, slots, _exchange(questions, split))

    _, value = jax.lax.while_loop(lambda c: c[0] <= last, round_, (jnp.zeros_like(last), start))
    return value


def _exchange(slots: Array, split: Split) -> Array:
    """Gives each device its part of the slots, and takes those of all devices in their order."""
    return jax.lax.all_to_all(slots, split.mesh_axes, 0, 0, tiled=True)
