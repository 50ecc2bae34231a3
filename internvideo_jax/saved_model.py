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

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from internvideo_jax.checksums import checksums, description_sha256
from internvideo_jax.config import from_dict, nearest_name, to_dict
from internvideo_jax.files import read_json
from internvideo_jax.model_files import (
    SavedModelError,
    check_files,
    copy_tokenizer_files,
    hash_files,
    tokenizer_paths,
)
from internvideo_jax.models import ARCHITECTURES
from internvideo_jax.preprocessing import Preprocessing
from internvideo_jax.saved_arrays import check_arrays, check_fit, restore

__all__ = [
    "SavedModel",
    "SavedModelError",
    "check",
    "load",
    "read_config",
    "read_description",
    "save",
    "write_description",
]

_logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
DESCRIPTION = "model.json"
ARRAYS = "params"
_DTYPES = ("float32", "bfloat16", "float16")
_OWN_KEYS = ("format_version", "architecture", "config", "preprocessing", "tokenizer")
# In the description only of classifiers whose classes have names.
_CLASSES = "classes"
# In all but older ones: checksums of arrays by name, the SHA-256 of files by path, and its own.
_CHECKSUMS = "checksums"
_FILES = "files"
_SHA256 = "sha256"
_ALL_KEYS = (*_OWN_KEYS, _CLASSES, _CHECKSUMS, _FILES, _SHA256)


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
    config, preprocessing = _described(description, where)
    dtype = _dtype("dtype", dtype, _DTYPES)
    storage = _dtype("storage", storage, (*_DTYPES, "int8"))
    if dtype is not None:
        config = _computing_in(config, dtype.name)
    module = architecture.module_cls(config)
    if check:
        check_files(directory, _files(description, where))
    return SavedModel(
        module=module,
        tokenizer_files=tokenizer_paths(directory, preprocessing, description["tokenizer"]),
        variables=restore(
            directory / ARRAYS,
            module,
            dtype=dtype,
            storage=storage,
            mesh=mesh,
            sums=_sums(description.get(_CHECKSUMS), where) if check else None,
        ),
        config=config,
        preprocessing=preprocessing,
        classes=_checked_classes(description.get(_CLASSES), config, where),
        metadata={k: v for k, v in description.items() if k not in _ALL_KEYS},
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
    config, preprocessing = _described(description, where)
    files = _files(description, where)
    check_files(directory, files)
    tokenizer = tokenizer_paths(directory, preprocessing, description["tokenizer"])
    sums = _sums(description.get(_CHECKSUMS), where)
    module = ARCHITECTURES[description["architecture"]].module_cls(config)
    nbytes = check_arrays(directory / ARRAYS, module, sums)
    return Checked(_SHA256 in description, len(sums or ()), nbytes, len(files) + len(tokenizer))


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
    """
    directory = epath.Path(path).expanduser().resolve()
    occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if jax.process_count() > 1:
        occupied = bool(multihost_utils.broadcast_one_to_all(np.asarray(occupied)))
    if occupied:
        raise FileExistsError(f"{directory} exists; choose another directory or remove it first")
    module = _architecture(architecture).module_cls(config)
    check_fit(f"the variables for {directory}", module, variables)
    variables = jax.tree.map(_loadable, dict(variables))
    sums = checksums(variables)
    try:
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
    except BaseException:
        if jax.process_index() == 0:
            directory.rmtree(missing_ok=True)
        raise


def write_description(
    directory: epath.PathLike,
    architecture: str,
    config: Any,
    preprocessing: Preprocessing,
    metadata: Mapping[str, Any] | None = None,
    tokenizer_files: Mapping[str, epath.PathLike] | None = None,
    classes: Sequence[str] | None = None,
    sums: Mapping[str, int] | None = None,
) -> None:
    """Copies the tokenizer files and writes `model.json`; the arrays must be there already.

    Args are those of `save`; `sums` are the arrays' checksums by path, see `checksums`.

    Raises:
      SavedModelError: the architecture is unknown, `config` is not its config, the tokenizer files
        are not those that the preprocessing names, or the classes not as many as the config's.
    """
    expected = _architecture(architecture).config_cls
    if not isinstance(config, expected):
        raise SavedModelError(
            f"{architecture} has a config of {expected.__name__}, found {type(config).__name__}"
        )
    taken = [key for key in metadata or {} if key in _ALL_KEYS]
    if taken:
        raise SavedModelError(f"metadata may not hold the description's own entries {taken}")
    description = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "config": to_dict(config),
        "preprocessing": to_dict(preprocessing),
        "tokenizer": copy_tokenizer_files(
            epath.Path(directory), preprocessing, tokenizer_files or {}
        ),
        **(metadata or {}),
    }
    if classes is not None:
        description[_CLASSES] = list(_checked_classes(list(classes), config, str(directory)) or ())
    if sums is not None:
        description[_CHECKSUMS] = dict(sums)
    description[_FILES] = hash_files(epath.Path(directory), ARRAYS)
    description[_SHA256] = description_sha256(description)
    text = json.dumps(description, indent=2) + "\n"
    partial = epath.Path(directory) / f".{DESCRIPTION}.partial"
    partial.write_text(text)
    partial.replace(epath.Path(directory) / DESCRIPTION)


def read_description(directory: epath.PathLike) -> dict[str, Any]:
    """Reads `model.json`: `architecture`, `config`, `preprocessing`, `tokenizer` (SHA-256 by name)
    and what the writer added, in the form of the present format version.

    Raises:
      SavedModelError: not a model directory, a damaged description, another format version or an
        unknown architecture.
    """
    path = epath.Path(directory) / DESCRIPTION
    if not path.is_file():
        advice = (
            "A PyTorch checkpoint becomes one with: internvideo-jax convert SOURCE --output=DIR"
        )
        # What `train` leaves in its workdir.
        if (trained := epath.Path(directory) / "model" / DESCRIPTION).is_file():
            advice = f"Did you mean {trained.parent}?"
        raise SavedModelError(
            f"{directory} is not a saved model: it has no {DESCRIPTION}. {advice}"
        )
    try:
        description = read_json(path)
    except ValueError as error:
        raise SavedModelError(str(error)) from None
    if not isinstance(description, dict) or type(description.get("format_version")) is not int:
        raise SavedModelError(f"{path} does not describe a saved model")
    version, sha256 = description["format_version"], description_sha256(description)
    if version == 1:
        # It knew videos only.
        if "preprocessing" in description:
            description["preprocessing"] = {"video": description["preprocessing"]}
        description |= {"format_version": FORMAT_VERSION, "tokenizer": {}}
    elif version != FORMAT_VERSION:
        raise SavedModelError(
            f"{path} has format version {version!r}, this internvideo_jax reads 1 to"
            f" {FORMAT_VERSION}: install the version that wrote it, or convert the model again"
        )
    elif description.get(_SHA256, sha256) != sha256:
        raise SavedModelError(
            f"{path} is damaged: its entries do not have the SHA-256 that was written with them;"
            " copy or convert the model again (if it was changed on purpose, remove its entry"
            f' "{_SHA256}")'
        )
    missing = [key for key in _OWN_KEYS if key not in description]
    if missing:
        raise SavedModelError(f"{path} lacks {', '.join(missing)}")
    _architecture(description["architecture"])
    return description


def read_config(path: epath.PathLike) -> tuple[Any, Preprocessing]:
    """The config and the preprocessing of a saved model, without its arrays.

    Raises:
      SavedModelError: as `read_description`.
      ValueError: an unknown field, or one of another type or out of its range.
    """
    directory = epath.Path(path).expanduser().resolve()
    return _described(read_description(directory), str(directory / DESCRIPTION))


def _described(description: Mapping[str, Any], where: str) -> tuple[Any, Preprocessing]:
    config_cls = ARCHITECTURES[description["architecture"]].config_cls
    return (
        from_dict(config_cls, description["config"], f"{where}: config"),
        from_dict(Preprocessing, description["preprocessing"], f"{where}: preprocessing"),
    )


def _architecture(name: Any) -> Any:
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise SavedModelError(
            f"expected an architecture of {', '.join(ARCHITECTURES)}, found {name!r}"
            + nearest_name(str(name), ARCHITECTURES)
        )
    return ARCHITECTURES[name]


def _checked_classes(classes: Any, config: Any, where: str) -> tuple[str, ...] | None:
    if classes is None:
        return None
    wanted = getattr(config, "num_classes", 0)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise SavedModelError(f"{where}: expected {_CLASSES} to be a list of names")
    if len(classes) != wanted or len(set(classes)) != wanted:
        raise SavedModelError(
            f"{where}: expected {wanted} different names of {_CLASSES}, as the model has, found"
            f" {len(set(classes))} in {len(classes)}"
        )
    return tuple(classes)


def _sums(sums: Any, where: str) -> dict[str, int] | None:
    """The checksums of a description, or None of one that has none."""
    if sums is None:
        _logger.warning("%s holds no checksums: its arrays are loaded unchecked", where)
        return None
    if not isinstance(sums, dict):
        raise SavedModelError(f"{where}: expected {_CHECKSUMS} to be numbers by name")
    return sums


def _files(description: Mapping[str, Any], where: str) -> dict[str, str]:
    """The SHA-256 of files by their path in the model; of older models, of none."""
    files = description.get(_FILES, {})
    if not isinstance(files, dict) or not all(isinstance(sha256, str) for sha256 in files.values()):
        raise SavedModelError(f"{where}: expected {_FILES} to be SHA-256 sums by path")
    for name in files:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise SavedModelError(
                f"{where}: expected {_FILES} in the model's folder, found {name!r}"
            )
    return files


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
