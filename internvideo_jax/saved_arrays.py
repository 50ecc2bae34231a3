"""The arrays of a saved model: found whole and as its config says, then read as they are wanted."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh, SingleDeviceSharding

from internvideo_jax.checksums import checksums
from internvideo_jax.files import check_regular, read_json
from internvideo_jax.model_files import SavedModelError
from internvideo_jax.models import abstract_variables
from internvideo_jax.nn import int8
from internvideo_jax.orbax_errors import DETAIL, quiet_reading
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import variable_shardings

# What Orbax compresses becomes smaller than its numbers, but trained weights never by this much.
_MAX_COMPRESSION = 32
_SMALL_BYTES = 64 * 2**20
# Where Orbax describes the tree of arrays.
_METADATA = "_METADATA"
# Where arrays are checked, so many bytes of them are read at a time; larger ones alone.
_GROUP_BYTES = 256 * 2**20


def check_fit(where: str, module: nn.Module, variables: Mapping[str, Any]) -> None:
    """Compares names, shapes and kinds of dtype of variables with those that a module has.

    Args:
      where: what to call the variables.
      module: the module.
      variables: their tree; kernels may be int8 with scales beside them.

    Raises:
      SavedModelError: they are not those of the module; all misfits are listed.
    """
    found, boxed = _flat(variables), _flat(abstract_variables(module, boxed=True))
    _check_arrays(where, _stored_shapes(boxed, found), found)


def restore(
    path: epath.Path,
    module: nn.Module,
    *,
    dtype: np.dtype | None,
    storage: np.dtype | None,
    mesh: Mesh | None,
    sums: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Reads the variables of a module.

    Args:
      path: an Orbax checkpoint.
      module: what they belong to.
      dtype: as in `saved_model.load`.
      storage: likewise.
      mesh: likewise.
      sums: checksums that the stored arrays must have, by path; None reads them unchecked.

    Raises:
      SavedModelError: arrays that are missing, extra, misshapen, damaged or cannot be read, or a
        module that is larger than all that is stored.
    """
    with _opened(path, module, mesh, sums) as (reader, boxed):
        variables = _read_as(reader, boxed, dtype, storage)
        reader.expect_sound()
    return traverse_util.unflatten_dict(variables, sep="/")


def check_arrays(path: epath.Path, module: nn.Module, sums: Mapping[str, int] | None) -> int:
    """Reads all stored arrays and compares their checksums, a few of them in memory at a time.

    Args:
      path: an Orbax checkpoint.
      module: what the arrays belong to.
      sums: checksums that they must have, by path; None compares none.

    Returns:
      Bytes of the arrays.

    Raises:
      SavedModelError: as `restore`.
    """
    with _opened(path, module, None, sums) as (reader, _):
        for names in reader.groups(reader.stored):
            reader.read(names, None)
        reader.expect_sound()
        return sum(map(_nbytes, reader.stored.values()))


@contextlib.contextmanager
def _opened(
    path: epath.Path, module: nn.Module, mesh: Mesh | None, sums: Mapping[str, int] | None
) -> "Iterator[tuple[_Reader, dict[str, Any]]]":
    """What reads a module's arrays, and their boxed shapes, which are those that are stored."""
    with quiet_reading(), ocp.PyTreeCheckpointer() as checkpointer:
        stored = _stored_arrays(checkpointer, path)
        _check_sizes(path, module, stored)
        boxed = _boxed(path, module)
        _check_arrays(str(path), _stored_shapes(boxed, stored), stored)
        every = boxed | jax.eval_shape(int8.quantize_kernels, boxed)
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings: dict[str, Any] = dict.fromkeys(every, device)
        if mesh is not None:
            shardings = variable_shardings(every, mesh, DEFAULT_RULES)
        yield _Reader(checkpointer, path, stored, shardings, sums), boxed


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads stored arrays by name, each onto its sharding.

    Attributes:
      sums: checksums that they must have; None reads them unchecked.
      damaged: names of arrays that had others.
    """

    checkpointer: ocp.Checkpointer
    path: epath.Path
    stored: Mapping[str, Any]
    shardings: Mapping[str, Any]
    sums: Mapping[str, int] | None
    damaged: list[str] = dataclasses.field(default_factory=list)

    def read(self, names: Collection[str], dtype: np.dtype | None) -> dict[str, jax.Array]:
        """The arrays, kernels in a dtype; see `expect_sound`."""
        if self.sums is None:
            return self._read(names, dtype)
        arrays: dict[str, jax.Array] = {}
        for group in self.groups(names):
            stored = self._read(group, None)
            found = checksums(stored)
            self.damaged.extend(name for name in group if found[name] != self.sums.get(name))
            arrays |= self._cast(stored, dtype)
        return arrays

    def groups(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Names of arrays that are read together, in one order on all processes."""
        group: list[str] = []
        for name in sorted(names):
            if group and sum(map(self._bytes_of, [*group, name])) > _GROUP_BYTES:
                yield group
                group = []
            group.append(name)
        if group:
            yield group

    def expect_sound(self) -> None:
        """Looks back at what was read.

        Raises:
          SavedModelError: some of it is damaged.
        """
        if self.damaged:
            raise SavedModelError(
                f"{len(self.damaged)} arrays under {self.path} are damaged: their checksums are not"
                " those that were saved; copy or convert the model again:\n  "
                + "\n  ".join(sorted(self.damaged))
            )

    def _cast(
        self, arrays: Mapping[str, jax.Array], dtype: np.dtype | None
    ) -> Mapping[str, jax.Array]:
        dtypes = {name: _restored_dtype(name, x.dtype, dtype) for name, x in arrays.items()}
        if all(x.dtype == dtypes[name] for name, x in arrays.items()):
            return arrays
        shardings = {name: self.shardings[name] for name in arrays}
        # Together, because compiling takes longer than casting most of them.
        cast = jax.jit(
            lambda arrays: {name: x.astype(dtypes[name]) for name, x in arrays.items()},
            out_shardings=shardings,
        )
        return cast(arrays)

    def _bytes_of(self, name: str) -> int:
        return _nbytes(self.stored[name])

    def _read(self, names: Collection[str], dtype: np.dtype | None) -> dict[str, jax.Array]:
        target = {
            name: jax.ShapeDtypeStruct(
                self.stored[name].shape,
                _restored_dtype(name, self.stored[name].dtype, dtype),
                sharding=self.shardings[name],
            )
            for name in names
        }
        item = traverse_util.unflatten_dict(target, sep="/")
        arguments = ocp.args.PyTreeRestore(
            item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        try:
            return _flat(self.checkpointer.restore(self.path, arguments))
        # Orbax reports a lost or cut-off file by a bare `Exception` whose cause says which.
        except Exception as error:
            raise _unreadable(self.path, error.__cause__ or error) from error


def _read_as(
    reader: _Reader,
    boxed: Mapping[str, Any],
    dtype: np.dtype | None,
    storage: np.dtype | None,
) -> dict[str, jax.Array]:
    """All arrays, kernels of linear layers in `storage`."""
    stored, shardings = reader.stored, reader.shardings
    kernels = {n: leaf.input_dims for n, leaf in boxed.items() if isinstance(leaf, int8.Kernel)}

    def run(fn: Callable[..., Any], name: str, *arrays: jax.Array, outputs: Any) -> Any:
        jitted = jax.jit(fn, static_argnums=len(arrays), out_shardings=outputs)
        return jitted(*arrays, kernels[name])

    # In one order on all processes.
    int8_kernels = sorted(name for name in kernels if name + int8.SUFFIX in stored)
    if storage == np.int8:
        to_quantize = sorted(kernels.keys() - int8_kernels)
        variables = reader.read(stored.keys() - to_quantize, dtype)
        # One by one, so that the float kernels are never all in memory.
        for name in to_quantize:
            outputs = shardings[name], shardings[name + int8.SUFFIX]
            kernel = reader.read([name], None)[name]
            pair = run(int8.quantize, name, kernel, outputs=outputs)
            variables[name], variables[name + int8.SUFFIX] = pair
        return variables
    variables = reader.read(stored.keys(), storage or dtype)
    for name in int8_kernels if storage is not None else ():
        pair = variables[name], variables.pop(name + int8.SUFFIX)
        wide = run(int8.dequantize, name, *pair, outputs=shardings[name])
        variables[name] = wide.astype(storage)
    return variables


def _check_sizes(path: epath.Path, module: nn.Module, stored: Mapping[str, Any]) -> None:
    """Refuses what would need far more memory than the files hold, before anything is made."""
    elements = sum(array.size for array in stored.values())
    needed = sum(map(_nbytes, stored.values()))
    # Listing a bucket is slow, and nobody else writes into ours.
    if "://" not in str(path) and needed > _SMALL_BYTES + _MAX_COMPRESSION * _file_bytes(path):
        raise SavedModelError(
            f"expected the files of {path} to hold arrays of {needed:,} bytes, found"
            f" {_file_bytes(path):,} bytes; they are cut off: copy or convert the model again"
        )
    least = _least_parameters(module.config)
    if least > elements:
        raise SavedModelError(
            f"expected a model of at most {elements:,} parameters, which lie under {path}, found a"
            f" config of more than {least:,}"
        )


def _file_bytes(path: epath.Path) -> int:
    """Bytes of all files in a folder, which must be regular ones."""
    try:
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        for file in files:
            check_regular(file)
        return sum(map(os.path.getsize, files))
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from error


def _least_parameters(config: Any) -> int:
    """So many parameters a model has at least, of the stacks that its config describes."""
    parts = [getattr(config, field.name) for field in dataclasses.fields(config)]
    inner = sum(_least_parameters(part) for part in parts if dataclasses.is_dataclass(part))
    return inner + int(getattr(config, "least_parameters", 0))


def _boxed(path: epath.Path, module: nn.Module) -> dict[str, Any]:
    try:
        return _flat(abstract_variables(module, boxed=True))
    except ValueError as error:
        raise SavedModelError(f"the config of {path.parent} describes no model: {error}") from None


def _stored_shapes(boxed: Mapping[str, Any], stored: Collection[str]) -> dict[str, Any]:
    """Shapes that belong to the stored names: int8 for the kernels with a scale beside them."""

    def shapes(boxed: Mapping[str, Any]) -> dict[str, Any]:
        return int8.quantize_kernels(boxed, lambda name: name + int8.SUFFIX in stored)

    unboxed: dict[str, Any] = nn.unbox(jax.eval_shape(shapes, boxed))
    return unboxed


def _stored_arrays(checkpointer: ocp.Checkpointer, path: epath.Path) -> dict[str, Any]:
    """Returns "collection/module/name" -> `jax.ShapeDtypeStruct` of what is on disk."""
    try:
        # Orbax does not tell a folder that may not be read from one that is not there.
        any(path.iterdir())
        if (path / _METADATA).exists():
            read_json(path / _METADATA)
        # The checkpointer itself would log the cause of a failure instead of raising it.
        metadata = checkpointer.handler.metadata(path)
        return {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype)
            for name, array in _flat(metadata.tree).items()
        }
    # Damaged descriptions of arrays come as nearly anything.
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: epath.Path, error: BaseException) -> SavedModelError:
    reason = next(iter(DETAIL.sub("", str(error)).splitlines()), type(error).__name__)
    return SavedModelError(f"the arrays under {path} cannot be read: {reason}")


def _restored_dtype(name: str, stored: Any, dtype: np.dtype | None) -> np.dtype:
    stored = np.dtype(stored)
    if dtype is None or not jnp.issubdtype(stored, jnp.floating):
        return stored
    return dtype if name.endswith("/kernel") else jnp.promote_types(stored, dtype)


def _nbytes(array: Any) -> int:
    return int(array.size * array.dtype.itemsize)


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
