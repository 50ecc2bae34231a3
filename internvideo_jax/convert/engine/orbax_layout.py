"""Orbax's layout on disk: what its readers need to find arrays that others have written.

A checkpoint of Orbax without OCDBT is a folder in zarr v2 format for each array, and files that
describe the tree. Writing these few lines of JSON takes a tenth of the time of importing Orbax.

Source: https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html and
https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

# Names of dictionaries; sequences have another number.
_DICT_KEY = 2
# NumPy's arrays are restored on any machine without asking how they were sharded.
_ARRAY = {"value_type": "np.ndarray", "skip_deserialize": False}
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def folder_name(path: str) -> str:
    """Folder of an array in a checkpoint, by its path in the tree, names joined by "/"."""
    return path.replace("/", ".")


def create_array(
    folder: Path, shape: tuple[int, ...], dtype: np.dtype, chunks: tuple[int, ...]
) -> None:
    """Makes the folder of an array whose chunks are files of plain numbers, not compressed.

    Float weights hardly shrink, and trying takes several times the time of writing.
    """
    folder.mkdir()
    description = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunks,
        # TensorStore knows bfloat16 and the like by name.
        "dtype": dtype.str if dtype.isbuiltin == 1 else dtype.name,
        "compressor": None,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
    }
    _write_json(folder / ".zarray", description)


def chunk_name(index: tuple[int, ...]) -> str:
    """File of a chunk in the folder of its array, by its place along every axis."""
    return ".".join(map(str, index)) or "0"


def describe_tree(directory: Path, paths: Iterable[str]) -> None:
    """Makes a checkpoint of a directory that holds the folders of arrays.

    `StandardCheckpointer` and `PyTreeCheckpointer` restore it, onto any sharding.

    Args:
      directory: where they lie.
      paths: of the arrays in the tree, names joined by "/".
    """
    now = time.time_ns()
    names = {path: tuple(path.split("/")) for path in paths}
    tree = {
        str(keys): {
            "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in keys],
            "value_metadata": _ARRAY,
        }
        for keys in names.values()
    }
    _write_json(
        directory / "_METADATA",
        {
            "tree_metadata": tree,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        },
    )
    _write_json(
        directory / "_CHECKPOINT_METADATA",
        {
            "item_handlers": _HANDLER,
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": now,
            "commit_timestamp_nsecs": now,
            "custom_metadata": {},
        },
    )
    # Tells a checkpoint in a bucket from one that is being written.
    (directory / "commit_success.txt").write_text("written by internvideo_jax\n")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
