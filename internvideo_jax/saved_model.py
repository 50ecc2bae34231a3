"""Models on disk that describe themselves: `load(path)` needs nothing but the directory.

  model.json   format version, architecture, config, preprocessing, the checksum of each array, the
               SHA-256 of each smaller file and of the description itself, the names of a
               classifier's classes where they are known, and what the writer adds (where the
               weights come from, how they were converted)
  params/      the variables tree {"params": ..., ["batch_stats": ...]}, an Orbax checkpoint;
               kernels may be int8 values with scales beside them (`nn.int8`)
  tokenizer/   the files that the text preprocessing names

The description is written last: a directory without it is no model.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from internvideo_jax.checksums import checksums
from internvideo_jax.config import nearest_name
from internvideo_jax.files import told_of_space
from internvideo_jax.model_description import (
    ARRAYS,
    DESCRIPTION,
    architecture_named,
    array_sums,
    check_classes,
    file_sums,
    metadata_of,
    parse_description,
    read_config,
    read_description,
    write_description,
)
from internvideo_jax.model_files import SavedModelError, check_files, tokenizer_paths
from internvideo_jax.models import ARCHITECTURES
from internvideo_jax.preprocessing import Preprocessing
from internvideo_jax.saved_arrays import check_arrays, check_fit, restore

__all__ = [
    "ARRAYS",
    "DESCRIPTION",
    "SavedModel",
    "SavedModelError",
    "check",
    "load",
    "read_config",
    "read_description",
    "save",
    "write_description",
]

_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model ready to run: `module.apply(variables, *inputs)`.

    Attributes:
      module: the Flax module.
      variables: its variables, `{"params": ..., ["batch_stats": ...]}`.
      config: the module's config dataclass.
      preprocessing: what its inputs must have gone through, by modality.
      metadata: the rest of the description: "source", "conversion", ...
      classes: names of the classes in the order of the logits; None where nobody has named them.
      tokenizer_files: where the files of `preprocessing.text` lie, by name.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: Any
    preprocessing: Preprocessing
    metadata: dict[str, Any]
    classes: tuple[str, ...] | None = None
    tokenizer_files: Mapping[str, epath.Path] = dataclasses.field(default_factory=dict)


def load(
    path: epath.PathLike,
    *,
    dtype: Any = None,
    storage: Any = None,
    mesh: Mesh | None = None,
    check: bool = True,
) -> SavedModel:
    """Loads a model that `save` or the converter wrote.

    Args:
      path: the model's directory; `gs://` paths work too.
      dtype: "float32", "bfloat16" or "float16": what the model computes in; without `storage` also
        what it keeps its kernels in, but for those saved as int8. None keeps everything as saved.
      storage: one of these dtypes or "int8": what kernels are kept in. In int8 the kernels of
        linear layers take a byte per weight and are widened layer by layer when they are used
        (`nn.int8`); the few other kernels stay as they would be without. Vectors and tables are
        never stored in less than they were saved in, because layer scales of 1e-5 lie below
        float16's range.
      mesh: spread the variables over this mesh by their logical axes; each process then reads
        only its own part. None puts them on the first local device.
      check: whether to compare arrays and files with the checksums that were saved, which takes a
        tenth of the time of reading them. A model without any, as older versions wrote it, gets a
        warning instead.

    Raises:
      SavedModelError: not a model directory, a damaged description, another format version, an
        unknown architecture, unreadable arrays, arrays that are missing, extra, misshapen or
        damaged (all are listed), or files that are missing or not those that were saved.
      ValueError: an unknown config field, one of another type or out of its range, dtype or
        storage.
    """
    directory = epath.Path(path).expanduser().resolve()
    description = read_description(directory)
    where = str(directory / DESCRIPTION)
    architecture = ARCHITECTURES[description["architecture"]]
    config, preprocessing = parse_description(description, where)
    dtype = _dtype("dtype", dtype, _DTYPES)
    storage = _dtype("storage", storage, (*_DTYPES, "int8"))
    if dtype is not None:
        config = _computing_in(config, dtype.name)
    module = architecture.module_cls(config)
    if check:
        check_files(directory, file_sums(description, where))
    return SavedModel(
        module=module,
        tokenizer_files=tokenizer_paths(directory, preprocessing, description["tokenizer"]),
        variables=restore(
            directory / ARRAYS,
            module,
            dtype=dtype,
            storage=storage,
            mesh=mesh,
            sums=array_sums(description, where) if check else None,
        ),
        config=config,
        preprocessing=preprocessing,
        classes=check_classes(description.get("classes"), config, where),
        metadata=metadata_of(description),
    )


class Checked(NamedTuple):
    """What `check` has compared with what was written.

    Attributes:
      description: whether `model.json` has a checksum.
      arrays: how many arrays have one.
      array_bytes: of all arrays.
      files: how many of the smaller files have one, those of the tokenizer included.
    """

    description: bool
    arrays: int
    array_bytes: int
    files: int


def check(path: epath.PathLike) -> Checked:
    """Reads all of a model and compares it with the checksums that were saved.

    A few arrays are in memory at a time. Models that older versions wrote lack some checksums, or
    all.

    Raises:
      SavedModelError: as `load`.
      ValueError: an unknown config field, or one of another type or out of its range.
    """
    directory = epath.Path(path).expanduser().resolve()
    description = read_description(directory)
    where = str(directory / DESCRIPTION)
    config, preprocessing = parse_description(description, where)
    files = file_sums(description, where)
    check_files(directory, files)
    tokenizer = tokenizer_paths(directory, preprocessing, description["tokenizer"])
    sums = array_sums(description, where)
    module = ARCHITECTURES[description["architecture"]].module_cls(config)
    nbytes = check_arrays(directory / ARRAYS, module, sums)
    return Checked("sha256" in description, len(sums or ()), nbytes, len(files) + len(tokenizer))


def save(
    path: epath.PathLike,
    architecture: str,
    config: Any,
    preprocessing: Preprocessing,
    variables: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    tokenizer_files: Mapping[str, epath.PathLike] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Writes a model from its variables in memory; with several processes, all must call it.

    Args:
      path: directory to make; may exist if it is empty. `gs://` paths work too.
      architecture: name in `models.ARCHITECTURES`.
      config: that architecture's config dataclass.
      preprocessing: what inputs must go through.
      variables: the module's unboxed variables, of NumPy or (sharded) JAX arrays; kernels may be
        int8 with scales beside them.
      metadata: further JSON-ready entries of the description, e.g. "source".
      tokenizer_files: where to copy the files of `preprocessing.text` from, by name.
      classes: names of the classes in the order of the logits.

    Raises:
      FileExistsError: the directory exists and is not empty.
      SavedModelError: the variables are not those of the config's model (all misfits are listed),
        or the tokenizer files not those of the preprocessing.
      DiskFullError: the disk is full; nothing remains.
    """
    directory = epath.Path(path).expanduser().resolve()
    occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if jax.process_count() > 1:
        occupied = bool(multihost_utils.broadcast_one_to_all(np.asarray(occupied)))
    if occupied:
        raise FileExistsError(f"{directory} exists; choose another directory or remove it first")
    module = architecture_named(architecture).module_cls(config)
    check_fit(f"the variables for {directory}", module, variables)
    variables = jax.tree.map(_loadable, dict(variables))
    sums = checksums(variables)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    with told_of_space(directory, nbytes), _removed_on_error(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory / ARRAYS, variables)
        if jax.process_index() == 0:
            write_description(
                directory,
                architecture,
                config,
                preprocessing,
                metadata,
                tokenizer_files,
                classes,
                sums,
            )


@contextlib.contextmanager
def _removed_on_error(directory: epath.Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if jax.process_index() == 0:
            directory.rmtree(missing_ok=True)
        raise


def _loadable(array: Any) -> Any:
    """An array in a dtype that JAX reads back: float64 needs a special mode."""
    if isinstance(array, jax.Array):
        return array
    return np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))


def _computing_in(config: Any, dtype: str) -> Any:
    """Sets the compute dtype of a config and of the configs inside it."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "dtype":
            changes[field.name] = dtype
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _computing_in(value, dtype)
    return dataclasses.replace(config, **changes)


def _dtype(argument: str, value: Any, known: Collection[str]) -> np.dtype | None:
    if value is None:
        return None
    try:
        name = np.dtype(value).name
    except TypeError:
        name = str(value)
    if name not in known:
        raise ValueError(
            f"expected a {argument} of {', '.join(known)}, found {name!r}"
            f"{nearest_name(name, known)}"
        )
    return np.dtype(value)
