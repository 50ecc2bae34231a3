"""A saved model back to a `.safetensors` file with PyTorch's keys."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from internvideo_jax.config import from_dict
from internvideo_jax.convert.engine.plan import export_plan
from internvideo_jax.convert.engine.state_dict import to_state_dict
from internvideo_jax.convert.engine.upstream import to_upstream
from internvideo_jax.convert.files.safetensors_file import write_safetensors_file
from internvideo_jax.models import ARCHITECTURES
from internvideo_jax.saved_model import ARRAYS, check, read_description


def export(
    model_dir: str | Path, output: str | Path, progress: Callable[[int], object] | None = None
) -> dict[str, Any]:
    """Writes a saved model's variables under the keys of the checkpoint that it came from.

    One parameter is in memory at a time (of a stacked one, all its layers). Values are those of the
    checkpoint to the bit, in the saved model's dtype; int8 kernels become float32 again. Tensors
    that repeated others are written again. The file's
    metadata tell what tensors do not show of the model, so that converting it needs no options.

    Args:
      model_dir: what `conversion.write` or `saved_model.save` made.
      output: the file to make.
      progress: called with the number of bytes written since the last call.

    Returns:
      "tensors", how many were written, and what of the original checkpoint they do not restore:
      "ignored", "adapted" and "initial_values" as in `Plan.report`.

    Raises:
      SavedModelError: not a saved model, or a damaged one.
      FileExistsError: the output exists.
      OSError: the disk is full (`files.DiskFullError`) or cannot be written; nothing remains.
    """
    model_dir = Path(model_dir).expanduser().resolve()
    check(model_dir)
    description = read_description(model_dir)
    config_cls = ARCHITECTURES[description["architecture"]].config_cls
    config: Any = from_dict(config_cls, description["config"])
    conversion = description.get("conversion", {})
    names = conversion.get("names", {})
    with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.metadata(model_dir / ARRAYS).item_metadata.tree
        dtypes = {
            path: np.dtype(leaf.dtype)
            for path, leaf in traverse_util.flatten_dict(stored, sep="/").items()
        }
        plan = export_plan(config, conversion.get("prefix", ""), names, dtypes)
        declarations = {
            # Of int8 values and their scale, the scale's dtype.
            plan.names[key]: (shape, dtypes[a.targets[-1]])
            for a in plan.loaded
            for key, shape in zip(a.keys, a.written_shapes, strict=True)
        }
        repeated: dict[str, list[str]] = {}
        for name, other in conversion.get("tied", {}).items():
            if other in declarations and name not in declarations:
                repeated.setdefault(other, []).append(name)
        declarations |= {n: declarations[o] for o, names in repeated.items() for n in names}
        # `conversion.prepare` reads these options of a file, as it does training arguments.
        metadata = {"format": "pt", "config": json.dumps(to_upstream(config))}

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            for targets in dict.fromkeys(assignment.targets for assignment in plan.loaded):
                variables = _restore(checkpointer, model_dir / ARRAYS, targets)
                for name, tensor in to_state_dict(variables, plan).items():
                    for written in (name, *repeated.get(name, ())):
                        yield written, tensor
                        if progress is not None:
                            progress(tensor.nbytes)

        write_safetensors_file(Path(output), declarations, tensors(), metadata)
    unrestored = ("ignored", "adapted", "initial_values")
    return {"tensors": len(declarations)} | {n: conversion.get(n, {}) for n in unrestored}


def stored_bytes(model_dir: str | Path) -> int:
    """Bytes of a saved model's arrays on disk."""
    arrays = Path(model_dir).expanduser() / ARRAYS
    return sum(path.stat().st_size for path in arrays.rglob("*") if path.is_file())


def _restore(
    checkpointer: ocp.PyTreeCheckpointer, path: Path, targets: tuple[str, ...]
) -> dict[str, Any]:
    """The variables tree with some of its arrays alone, as NumPy's."""
    leaves = [tuple(target.split("/")) for target in targets]
    restore = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
        item=traverse_util.unflatten_dict(dict.fromkeys(leaves, 0)),
        restore_args=traverse_util.unflatten_dict(dict.fromkeys(leaves, restore)),
        partial_restore=True,
    )
    return checkpointer.restore(path, args=args)
