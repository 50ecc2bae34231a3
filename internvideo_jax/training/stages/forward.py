"""A model on the mesh as a function of NumPy arrays, for evaluation during training."""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import partition_spec
from internvideo_jax.training.stage import PyTree

Apply = Callable[[PyTree, jax.Array], jax.Array]


def local_forward(apply: Apply, variables: PyTree) -> Callable[[np.ndarray], np.ndarray]:
    """A function of this process's rows of a batch to their results.

    All processes call it together, with as many rows each. Rows that the devices do not divide are
    filled up.

    Args:
      apply: jitted, of variables and inputs `[B, ...]` to outputs `[B, C]`.
      variables: on the mesh.
    """
    sharding = jax.tree.leaves(variables)[0].sharding
    if not isinstance(sharding, NamedSharding):
        return lambda rows: np.asarray(apply(variables, jax.device_put(rows, sharding)))
    mesh = sharding.mesh
    split = NamedSharding(mesh, partition_spec(("batch",), DEFAULT_RULES))
    ways = math.prod(mesh.shape[axis] for axis in split.spec[0])
    processes = jax.process_count()
    # Every process then has all rows.
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def forward(rows: np.ndarray) -> np.ndarray:
        missing = -len(rows) % max(ways // processes, 1)
        filled = np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)])
        inputs = jax.make_array_from_process_local_data(split, filled)
        outputs = np.asarray(whole(apply(variables, inputs)))
        start = jax.process_index() * len(filled)
        return outputs[start : start + len(rows)]

    return forward
