"""Batches on the devices: whether they fit, their shapes and shardings, and how they get there."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from internvideo_jax.parallel.rules import Rules
from internvideo_jax.parallel.sharding import partition_spec
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stage import Batch, Batches, HostBatch, Stage

# Clips travel as bytes or normalised already.
_CLIP_DTYPES = {np.dtype(np.uint8), np.dtype(np.float32)}


def check_batch_fits(config: TrainConfig, mesh: Mesh, kind: Batches) -> None:
    """Checks that every device gets the same number of rows of every micro-batch, and that these
    are what the stage takes.

    Args:
      config: says how many copies of a clip and how many micro-batches there are.
      mesh: the devices.
      kind: the batches.

    Raises:
      ValueError: it does not.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    of_micro_batch, left = divmod(kind.rows, config.accumulation)
    batch_size = kind.rows // config.num_sample
    if left or of_micro_batch % ways or batch_size % jax.process_count():
        raise ValueError(
            f"expected micro-batches that the {ways} devices of data*fsdp and the"
            f" {jax.process_count()} processes divide, found {of_micro_batch} rows"
            f" (batch_size={batch_size} * num_sample={config.num_sample} / accumulation="
            f"{config.accumulation}); change the batch or the mesh"
        )
    kind.stage.check_batch(of_micro_batch, ways)


def abstract_batch(
    stage: Stage, rows: int, mesh: Mesh, rules: Rules
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch: every array is split by rows."""

    def split(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = partition_spec(("batch",) + (None,) * (x.ndim - 1), rules)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return {name: split(x) for name, x in stage.example_batch(rows).items()}


def to_devices(host_batch: HostBatch, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> Batch:
    """The stage's fields of a batch, each process giving its rows.

    Args:
      host_batch: the rows of this process.
      inputs: from `abstract_batch`.

    Raises:
      ValueError: a field is missing, or of another shape or dtype.
    """
    if any(name not in host_batch for name in inputs):
        raise ValueError(
            f"expected batches with the fields {', '.join(inputs)}, found"
            f" {', '.join(host_batch)}; the data config does not fit the stage"
        )
    batch = {}
    for name, like in inputs.items():
        array = host_batch[name]
        shape = (like.shape[0] // jax.process_count(), *like.shape[1:])
        kinds = {np.dtype(like.dtype), array.dtype}
        if array.shape != shape or (len(kinds) > 1 and kinds != _CLIP_DTYPES):
            raise ValueError(
                f"expected batches with {name} {np.dtype(like.dtype).name}{list(shape)}, found"
                f" {array.dtype.name}{list(array.shape)}; the data config does not fit the stage"
            )
        # Of several processes, JAX takes this for an implicit transfer.
        with jax.transfer_guard_host_to_device("allow"):
            batch[name] = jax.make_array_from_process_local_data(like.sharding, array, like.shape)
    return batch
