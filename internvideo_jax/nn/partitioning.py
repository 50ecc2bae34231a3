"""Logical axis names on parameters."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

# (key, shape, dtype) -> array, as Flax calls it.
Initializer = Callable[..., jax.Array]


def with_axes(init: Initializer, axes: tuple[str | None, ...]) -> Callable[..., Any]:
    """An initialiser whose array carries the logical names `axes` of its dimensions.

    The names place a parameter when it is created and restored (`parallel.sharding`). Flax would
    also constrain its sharding at every use, which the empty rules turn off: `DenseGeneral` unboxes
    a kernel while it is flattened to two dimensions, where longer names do not fit.
    """
    return nn.with_logical_partitioning(init, axes, rules=())
