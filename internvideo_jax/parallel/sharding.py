"""From logical axis names to shardings: of parameters at their creation, of ops inside a model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from internvideo_jax.parallel.rules import Rules

LogicalAxes = tuple[str | None, ...]
PyTree = Any


def partition_spec(axes: LogicalAxes, rules: Rules) -> PartitionSpec:
    """Mesh axes of each dimension of an array whose dimensions are called `axes`.

    A mesh axis is given to one dimension only, to that with the earlier rule.

    Raises:
      ValueError: a name has no rule.
    """
    split = {name for name, mesh_axes in rules if mesh_axes is not None}
    unknown = [name for name in axes if name is not None and name not in dict(rules)]
    if unknown:
        raise ValueError(
            f"expected logical axes with a rule ({', '.join(dict(rules))}), found {unknown[0]!r}"
            f" in {axes}; correct the name or add a rule for it"
        )
    # Names that are not split may repeat in one array, which flax does not accept.
    known = tuple(a if a in split else None for a in axes)
    return nn.logical_to_mesh_axes(known, rules) or PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Split:
    """How a dimension is cut: over which mesh axes, into how many parts."""

    mesh_axes: tuple[str, ...] = ()
    parts: int = 1

    def index(self) -> int | jax.Array:
        """Which part a device holds; for functions under `shard_map_logical`."""
        return jax.lax.axis_index(self.mesh_axes) if self.parts > 1 else 0


def splits(axes: LogicalAxes) -> tuple[Split, ...]:
    """How the current mesh and rules cut an array whose dimensions are called `axes`.

    Raises:
      ValueError: a name has no rule.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or mesh.size == 1 or not rules:
        return (Split(),) * len(axes)
    return tuple(
        Split((part,) if isinstance(part, str) else part or (), _ways(part, mesh))
        for part in partition_spec(axes, rules)
    )


def shard_map_logical(
    fn: Callable[..., PyTree], in_axes: tuple[PyTree, ...], out_axes: PyTree
) -> Callable[..., PyTree]:
    """Runs `fn` on each device's shard of its inputs instead of letting the compiler split it.

    Custom kernels need this, and attention gains by it: no compiler choice between collectives.
    The mesh is the current one (`jax.set_mesh`), the rules are flax's current ones
    (`flax.linen.logical_axis_rules`). Without either, or on one device, `fn` is called as it is.
    Both are read while tracing, and flax's rules are not part of jit's cache key: do not call one
    jitted function under two sets of rules.

    Args:
      fn: a function of arrays that is independent along every split dimension.
      in_axes: logical axes of each input, e.g. `("batch", None, "heads", None)`, None being whole,
        or a pytree of them if the input is a pytree.
      out_axes: logical axes of the output, or a pytree of them if `fn` returns a pytree.

    Returns:
      A function of the same arguments and results as `fn`, global arrays in and out.

    Raises:
      ValueError: (when called) a dimension is not divisible by the mesh axes it is split over.
    """

    def call(*args: PyTree) -> PyTree:
        mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
        if mesh.empty or mesh.size == 1 or not rules:
            return fn(*args)
        in_specs, out_specs = jax.tree.map(
            lambda axes: partition_spec(axes, rules), (in_axes, out_axes), is_leaf=_is_logical_axes
        )
        jax.tree.map(
            lambda axes, spec, arg: _check_divisible(arg.shape, axes, spec, mesh),
            in_axes,
            in_specs,
            args,
            is_leaf=_is_logical_axes,
        )
        # Pallas kernels do not say along which mesh axes their results vary, so that cannot be
        # checked.
        return jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args)

    return call


def placed(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    """An array that every process has whole, on the devices of a sharding.

    `jax.device_put` would send it from process to process, to compare it.

    Args:
      array: the array, alike in all processes.
      sharding: None: the first local device.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def variable_shardings(boxed: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """Shardings of the leaves of a variables tree that still carries its logical axis names.

    A dimension that its mesh axes do not divide stays whole (see `unsplit_dimensions`); leaves
    without names are replicated.

    Args:
      boxed: tree with `flax.linen.LogicallyPartitioned` leaves, of arrays or shapes, as
        `jax.eval_shape(module.init, ...)` gives.
      mesh: the mesh.
      rules: logical to mesh axes.

    Returns:
      Tree of `NamedSharding` in the structure of the unboxed variables.
    """

    def sharding(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, PartitionSpec())
        spec = partition_spec(leaf.names, rules)
        sizes = zip(leaf.value.shape, spec, strict=True)
        kept = (axes if size % _ways(axes, mesh) == 0 else None for size, axes in sizes)
        return NamedSharding(mesh, PartitionSpec(*kept))

    return jax.tree.map(sharding, boxed, is_leaf=_is_boxed)


def unsplit_dimensions(boxed: PyTree, mesh: Mesh, rules: Rules) -> list[str]:
    """One line for each dimension that `variable_shardings` leaves whole against its rule."""
    notes = []
    for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=_is_boxed):
        if not isinstance(leaf, nn.LogicallyPartitioned):
            continue
        spec = partition_spec(leaf.names, rules)
        for name, size, axes in zip(leaf.names, leaf.value.shape, spec, strict=True):
            if size % _ways(axes, mesh):
                where = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
                notes.append(
                    f"{where}: axis {name!r} of size {size} is kept whole, {_name(axes)}="
                    f"{_ways(axes, mesh)} does not divide it"
                )
    return notes


def abstract_params(init_fn: Callable[..., PyTree], mesh: Mesh, rules: Rules, *args: Any) -> PyTree:
    """Shapes of what `init_sharded` would create, with their shardings; nothing is allocated.

    Args and errors are those of `init_sharded`; any argument may be a shape.

    Returns:
      Tree of `jax.ShapeDtypeStruct` that carry shardings.
    """
    # An initialiser's forward pass is dead code on one example, which a mesh need not divide.
    with nn.logical_axis_rules(()):
        boxed = jax.eval_shape(init_fn, *args)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(boxed),
        variable_shardings(boxed, mesh, rules),
    )


def init_sharded(init_fn: Callable[..., PyTree], mesh: Mesh, rules: Rules, *args: Any) -> PyTree:
    """Creates variables directly in their sharding, so that none is ever whole on one device.

    Their values do not depend on the mesh.

    Args:
      init_fn: usually `module.init`; its arrays carry logical axis names.
      mesh: where the variables shall live.
      rules: logical to mesh axes.
      *args: arguments of `init_fn`.

    Returns:
      The unboxed variables.

    Raises:
      ValueError: a logical axis name has no rule.
    """
    shapes = abstract_params(init_fn, mesh, rules, *args)

    def create(*args: Any) -> PyTree:
        with nn.logical_axis_rules(()):
            return nn.unbox(init_fn(*args))

    return jax.jit(create, out_shardings=jax.tree.map(lambda x: x.sharding, shapes))(*args)


def _check_divisible(
    shape: tuple[int, ...], axes: LogicalAxes, spec: PartitionSpec, mesh: AbstractMesh
) -> None:
    for size, name, mesh_axes in zip(shape, axes, spec, strict=True):
        ways = _ways(mesh_axes, mesh)
        if size % ways:
            divisors = ", ".join(str(d) for d in range(1, size + 1) if size % d == 0)
            raise ValueError(
                f"expected a number of {name!r} divisible by the {ways} devices of the mesh"
                f" {'axes' if isinstance(mesh_axes, tuple) else 'axis'} {_name(mesh_axes)}, found"
                f" {size}, which divides by {divisors}; change the mesh or the {name!r}"
            )


def _ways(axes: str | tuple[str, ...] | None, mesh: Mesh | AbstractMesh) -> int:
    """Number of parts a dimension is cut into."""
    if axes is None:
        return 1
    shape: Mapping[str, int] = mesh.shape
    ways = 1
    for axis in (axes,) if isinstance(axes, str) else axes:
        ways *= shape[axis]
    return ways


def _name(axes: str | tuple[str, ...] | None) -> str:
    return axes if isinstance(axes, str) else "*".join(axes or ())


def _is_logical_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)


def _is_boxed(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)
