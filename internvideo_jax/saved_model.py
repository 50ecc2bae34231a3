"""Models on disk that describe themselves: `load(path)` needs nothing but the directory.

  model.json   format version, architecture, config, preprocessing, and what the writer adds
               (where the weights come from, how they were converted)
  params/      the variables tree {"params": ..., ["batch_stats": ...]}, an Orbax checkpoint

The description is written last: a directory without it is no model.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding

from internvideo_jax.config import from_dict, nearest_name, to_dict
from internvideo_jax.models import ARCHITECTURES, abstract_variables
from internvideo_jax.parallel.rules import DEFAULT_RULES, Rules
from internvideo_jax.parallel.sharding import variable_shardings
from internvideo_jax.preprocessing import Preprocessing

FORMAT_VERSION = 1
DESCRIPTION = "model.json"
ARRAYS = "params"
_DTYPES = ("float32", "bfloat16", "float16")
_OWN_KEYS = ("format_version", "architecture", "config", "preprocessing")


class SavedModelError(ValueError):
    """A directory that is not a saved model, or whose parts do not fit together."""


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model ready to run: `module.apply(variables, video)`.

    Attributes:
      module: the Flax module.
      variables: its variables, `{"params": ..., ["batch_stats": ...]}`.
      config: the module's config dataclass.
      preprocessing: what its input clips must have gone through.
      metadata: the rest of the description: "source", "conversion", ...
    """

    module: nn.Module
    variables: dict[str, Any]
    config: Any
    preprocessing: Preprocessing
    metadata: dict[str, Any]


def load(
    path: epath.PathLike,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> SavedModel:
    """Loads a model that `save` or the converter wrote.

    Args:
      path: the model's directory; `gs://` paths work too.
      dtype: "float32", "bfloat16" or "float16": what the model computes in and keeps its kernels
        in. Vectors and tables are never stored in less than they were saved in, because layer
        scales of 1e-5 lie below float16's range. None keeps everything as saved.
      mesh: spread the variables over this mesh by their logical axes; each process then reads
        only its own part. None puts them on the first local device.
      rules: logical to mesh axes, for `mesh`; default `parallel.rules.DEFAULT_RULES`.

    Raises:
      SavedModelError: not a model directory, another format version, an unknown architecture,
        unreadable arrays, or arrays that are missing, extra or misshapen (all are listed).
      ValueError: an unknown or ill-typed config field, or dtype; `rules` without `mesh`.
    """
    if rules is not None and mesh is None:
        raise ValueError("rules say how to spread variables over a mesh: give mesh as well")
    directory = epath.Path(path).expanduser().resolve()
    description = read_description(directory)
    where = str(directory / DESCRIPTION)
    architecture = ARCHITECTURES[description["architecture"]]
    config: Any = from_dict(architecture.config_cls, description["config"], f"{where}: config")
    if dtype is not None:
        dtype = np.dtype(dtype)
        if dtype.name not in _DTYPES:
            raise ValueError(f"expected a dtype of {', '.join(_DTYPES)}, found {dtype.name}")
        config = _computing_in(config, dtype.name)
    module = architecture.module_cls(config)
    return SavedModel(
        module=module,
        variables=_restore(directory / ARRAYS, module, dtype, mesh, rules or DEFAULT_RULES),
        config=config,
        preprocessing=from_dict(
            Preprocessing, description["preprocessing"], f"{where}: preprocessing"
        ),
        metadata={key: value for key, value in description.items() if key not in _OWN_KEYS},
    )


def save(
    path: epath.PathLike,
    architecture: str,
    config: Any,
    preprocessing: Preprocessing,
    variables: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model from its variables in memory; with several processes, all must call it.

    Args:
      path: directory to make; may exist if it is empty. `gs://` paths work too.
      architecture: name in `models.ARCHITECTURES`.
      config: that architecture's config dataclass.
      preprocessing: what input clips must go through.
      variables: the module's unboxed variables, of NumPy or (sharded) JAX arrays.
      metadata: further JSON-ready entries of the description, e.g. "source".

    Raises:
      FileExistsError: the directory exists and is not empty.
      SavedModelError: the variables are not those of the config's model (all misfits are listed).
    """
    directory = epath.Path(path).expanduser().resolve()
    occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if jax.process_count() > 1:
        occupied = bool(multihost_utils.broadcast_one_to_all(np.asarray(occupied)))
    if occupied:
        raise FileExistsError(f"{directory} exists; choose another directory or remove it first")
    expected = abstract_variables(_architecture(architecture).module_cls(config))
    _check_arrays(f"the variables for {directory}", _flat(expected), _flat(dict(variables)))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory / ARRAYS, dict(variables))
        if jax.process_index() == 0:
            write_description(directory, architecture, config, preprocessing, metadata)
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
) -> None:
    """Writes `model.json`; the arrays must be there already.

    Raises:
      SavedModelError: the architecture is unknown or `config` is not its config.
    """
    expected = _architecture(architecture).config_cls
    if not isinstance(config, expected):
        raise SavedModelError(
            f"{architecture} has a config of {expected.__name__}, found {type(config).__name__}"
        )
    taken = [key for key in metadata or {} if key in _OWN_KEYS]
    if taken:
        raise SavedModelError(f"metadata may not hold the description's own entries {taken}")
    description = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "config": to_dict(config),
        "preprocessing": to_dict(preprocessing),
        **(metadata or {}),
    }
    text = json.dumps(description, indent=2) + "\n"
    partial = epath.Path(directory) / f".{DESCRIPTION}.partial"
    partial.write_text(text)
    partial.replace(epath.Path(directory) / DESCRIPTION)


def read_description(directory: epath.PathLike) -> dict[str, Any]:
    """Reads `model.json`: the keys `format_version`, `architecture`, `config`, `preprocessing`
    and what the writer added.

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
        description = json.loads(path.read_text())
    except ValueError as error:
        raise SavedModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(description, dict) or "format_version" not in description:
        raise SavedModelError(f"{path} does not describe a saved model")
    version = description["format_version"]
    if version != FORMAT_VERSION:
        raise SavedModelError(
            f"{path} has format version {version!r}, this internvideo_jax reads {FORMAT_VERSION}: "
            "install the version that wrote it, or convert the model again"
        )
    missing = [key for key in _OWN_KEYS if key not in description]
    if missing:
        raise SavedModelError(f"{path} lacks {', '.join(missing)}")
    _architecture(description["architecture"])
    return description


def _architecture(name: Any) -> Any:
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise SavedModelError(
            f"expected an architecture of {', '.join(ARCHITECTURES)}, found {name!r}"
            + nearest_name(str(name), ARCHITECTURES)
        )
    return ARCHITECTURES[name]


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


def _restore(
    path: epath.Path, module: nn.Module, dtype: Any, mesh: Mesh | None, rules: Rules
) -> dict[str, Any]:
    boxed = abstract_variables(module, boxed=True)
    expected = _flat(nn.unbox(boxed))
    if mesh is None:
        one_device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = dict.fromkeys(expected, one_device)
    else:
        shardings = _flat(variable_shardings(boxed, mesh, rules))
    with ocp.StandardCheckpointer() as checkpointer:
        stored = _stored_arrays(checkpointer, path)
        _check_arrays(str(path), expected, stored)
        target = {
            name: jax.ShapeDtypeStruct(
                array.shape, _restored_dtype(name, array.dtype, dtype), sharding=shardings[name]
            )
            for name, array in stored.items()
        }
        try:
            return checkpointer.restore(path, traverse_util.unflatten_dict(target, sep="/"))
        # Orbax reports a lost or cut-off file by a bare `Exception` whose cause says which.
        except Exception as error:
            cause = error.__cause__ or error
            raise SavedModelError(f"the arrays under {path} cannot be read: {cause}") from error


def _stored_arrays(checkpointer: ocp.StandardCheckpointer, path: epath.Path) -> dict[str, Any]:
    """Returns "collection/module/name" -> something with shape and dtype, of what is on disk."""
    try:
        # Orbax does not tell a folder that may not be read from one that is not there.
        any(path.iterdir())
        metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:
            raise FileNotFoundError("there is no Orbax checkpoint")
        return _flat(metadata.tree)
    except (ValueError, OSError) as error:
        raise SavedModelError(f"the arrays under {path} cannot be read: {error}") from error


def _restored_dtype(name: str, stored: Any, dtype: np.dtype | None) -> np.dtype:
    stored = np.dtype(stored)
    if dtype is None or not jnp.issubdtype(stored, jnp.floating):
        return stored
    return dtype if name.endswith("/kernel") else jnp.promote_types(stored, dtype)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def _check_arrays(where: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compares names, shapes and kinds of dtype of two flat trees."""
    errors = [
        f"{name}: missing, expected shape {array.shape}"
        for name, array in expected.items()
        if name not in found
    ]
    for name, array in found.items():
        if name not in expected:
            errors.append(f"{name}: not part of the model, found shape {tuple(array.shape)}")
        elif tuple(array.shape) != expected[name].shape:
            errors.append(
                f"{name}: expected shape {expected[name].shape}, found {tuple(array.shape)}"
            )
        elif _is_floating(array) != _is_floating(expected[name]):
            errors.append(f"{name}: expected dtype {expected[name].dtype}, found {array.dtype}")
    if errors:
        raise SavedModelError(
            f"{len(errors)} arrays of {where} do not fit the model's config:\n  "
            + "\n  ".join(errors)
        )


def _is_floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)
