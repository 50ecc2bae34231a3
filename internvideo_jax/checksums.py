"""Checksums, which tell whether what is stored is what was written: of arrays and descriptions."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

# Elements of a row of `partial_checksum`: few sums to weigh, few rows.
_ROW = 2**10


def checksums(tree: PyTree) -> dict[str, int]:
    """A 32-bit checksum of each array, by "/"-joined path.

    It is the sum modulo 2^32 of the elements' bits, each times an odd number made of its position:
    any single wrong element changes it. Computed where the arrays are, in integers, it depends on
    the values alone, not on their sharding.
    """
    leaves = jax.tree.leaves_with_path(tree)
    if jax.process_count() == 1 and jax.default_backend() == "cpu":
        # Compiling would take longer than many saves of a small model do.
        values = [partial_checksum(np.asarray(leaf)) for _, leaf in leaves]
    else:
        values = jax.device_get(_device_checksums(tree))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {name: int(value) for name, value in zip(names, values, strict=True)}


def partial_checksum(piece: np.ndarray, start: int = 0) -> int:
    """What a piece of an array adds, modulo 2^32, to the checksum of the whole.

    Args:
      piece: successive elements of the array in row-major order, of 1, 2 or 4 bytes each.
      start: number of the first of them in the array.
    """
    bits = np.ascontiguousarray(piece).reshape(-1).view(f"u{piece.dtype.itemsize}")
    total = weighted = 0
    # Position = _ROW * row + column, so that sums over rows and columns are enough.
    whole = len(bits) // _ROW * _ROW
    for rows, first in ((bits[:whole].reshape(-1, _ROW), 0), (bits[None, whole:], whole)):
        if not rows.size:
            continue
        of_columns = rows.sum(axis=0, dtype=np.uint32)
        of_rows = rows.sum(axis=1, dtype=np.uint32)
        of_all = int(of_rows.sum(dtype=np.uint64))
        weighted += _positions_sum(of_columns) + _ROW * _positions_sum(of_rows) + first * of_all
        total += of_all
    return (2 * (weighted + start * total) + total) % 2**32


def _positions_sum(values: np.ndarray) -> int:
    """The sum of unsigned numbers `[N]`, each times its index, modulo 2^32."""
    return int((values * np.arange(len(values), dtype=np.uint32)).sum(dtype=np.uint32))


def description_sha256(description: Mapping[str, Any], entry: str = "sha256") -> str:
    """Of a JSON-ready description, in hexadecimal, without the `entry` that is to hold it."""
    rest = {name: value for name, value in description.items() if name != entry}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@jax.jit
def _device_checksums(tree: PyTree) -> list[jax.Array]:
    return [_device_checksum(leaf) for leaf in jax.tree.leaves(tree)]


def _device_checksum(x: jax.Array) -> jax.Array:
    """As `partial_checksum` of a whole array, which may be sharded."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        position = position * np.uint32(size % 2**32) + index
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)
