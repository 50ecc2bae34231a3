"""Letting Orbax describe arrays that are already on disk, so that its readers find them."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from flax import traverse_util


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in zarr v2 format in a folder of its own."""

    folder: Path


class _MovingHandler(ocp.type_handlers.NumpyHandler):
    """Saves a `StoredArray` by moving its folder to where Orbax expects the array.

    The arrays are recorded as NumPy's, which Orbax restores on any machine without asking for the
    sharding with which they were saved.
    """

    async def serialize(
        self, values: Sequence[StoredArray], infos: Sequence[Any], args: Any = None
    ) -> Sequence[Any]:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            os.rename(value.folder, info.path)
        return []


def save_stored_arrays(directory: Path, arrays: Mapping[str, StoredArray]) -> None:
    """Makes an Orbax checkpoint out of array folders on the same disk, which are moved into it.

    `StandardCheckpointer` and `PyTreeCheckpointer` restore it, onto any sharding.

    Args:
      directory: the checkpoint to make, an absolute path that does not exist.
      arrays: path in the tree, names joined by "/" -> array.
    """
    tree = traverse_util.unflatten_dict(dict(arrays), sep="/")
    registry = ocp.type_handlers.create_type_handler_registry(
        (StoredArray, _MovingHandler()),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
    with _errors_only(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(tree))


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Silences Orbax's warning that there are no OCDBT files to merge: there are to be none."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)
