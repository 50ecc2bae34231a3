"""Weights of a saved model for a model of other clips, other classes or another kind.

A classifier starts from a pre-trained student or another classifier; a teacher is the encoder of
whatever was trained. The converter's rules say what is adapted (position tables, patch kernels,
K710 heads) and what may be left out; everything else that does not fit is listed at once.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax import saved_model
from internvideo_jax.convert.engine.adaptations import Adaptation
from internvideo_jax.convert.engine.fitting import encoder_config, fit
from internvideo_jax.convert.engine.plan import TABLES, target_shapes
from internvideo_jax.convert.engine.rules import Assignment, assignments
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.convert.engine.upstream import architecture_of

PyTree = Any

# What a model may choose for itself: sizes that weights are adapted to, and how it computes. That
# two encoders agree on having layer scales and a learned table shows in their parameters.
_FREE_FIELDS = {
    "num_frames",
    "image_size",
    "tubelet_size",
    "learned_position",
    "as_released",
    "layer_scale_init",
    "drop_path_rate",
    "remat",
    "dtype",
}
_HEAD = {"head.weight", "head.bias"}


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """A model's variables, and a line on what was loaded, adapted, left out and started afresh."""

    variables: PyTree
    summary: str


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """A parameter and the PyTorch keys of all its layers, by which models are compared."""

    path: str
    shape: Shape
    layers: tuple[Assignment, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for layer in self.layers for key in layer.keys)

    @property
    def key_shapes(self) -> dict[str, Shape]:
        shapes = (shape for layer in self.layers for shape in layer.source_shapes)
        return dict(zip(self.keys, shapes, strict=True))


def load_weights(
    path: str,
    config: Any,
    like: PyTree,
    *,
    dtype: str,
    may_start_afresh: Callable[[str], bool] = lambda path: False,
    new_head: bool = False,
) -> LoadedWeights:
    """Variables of a model from a saved model, which may be of another kind or for other clips.

    Args:
      path: directory of the saved model.
      config: config of the model that the variables are for.
      like: its variables, or their shapes with shardings; the result has their dtypes.
      dtype: in which kernels are read.
      may_start_afresh: by path ("params/head/kernel"), whether a parameter that the saved model
        lacks keeps its value in `like`.
      new_head: leave the saved classifier's last layer out.

    Raises:
      ValueError: not a saved model, or misfits: parameters that are missing, extra or of another
        shape, fields of the encoders' configs that contradict each other; all are listed.
    """
    targets = traverse_util.flatten_dict(like, sep="/")
    mesh = _mesh_of(targets.values())
    saved = saved_model.load(path, dtype=dtype, mesh=mesh)
    arrays = traverse_util.flatten_dict(saved.variables, sep="/")
    left = {parameter.keys: parameter for parameter in _parameters(saved.config)}
    if new_head:
        left = {keys: p for keys, p in left.items() if not _HEAD & set(keys)}

    problems = _contradictions(saved.config, config)
    loads: list[tuple[_Parameter, _Parameter, Adaptation | None]] = []
    fresh: dict[str, Any] = {}
    for parameter in _parameters(config):
        found = left.pop(parameter.keys, None)
        if found is not None:
            try:
                adaptation = _adaptation(parameter, found, saved.config, config)
            except ValueError as error:
                problems.append(f"{parameter.path}: {error}")
            else:
                loads.append((parameter, found, adaptation))
        elif may_start_afresh(parameter.path):
            fresh[parameter.path] = targets[parameter.path]
        else:
            problems.append(f"{parameter.path}: missing, expected shape {parameter.shape}")
    ignored = TABLES[architecture_of(config)].ignored
    extra = [
        p
        for p in left.values()
        if not all(any(rule.matches(key) for rule in ignored) for key in p.keys)
    ]
    problems += [f"{p.path}: not part of the model, found shape {p.shape}" for p in extra]
    if problems:
        raise ValueError(
            f"the saved model {path} does not fit: {len(problems)} misfits\n  "
            + "\n  ".join(problems)
            + "\ncheck that this is the right model, and the stage's config"
        )

    loaded = dict(fresh)
    for parameter, found, adaptation in loads:
        array = arrays[found.path]
        if adaptation is not None:
            array = _adapt(array, parameter, adaptation, mesh)
        loaded[parameter.path] = _place(array, targets[parameter.path])
    adapted = [f"{p.path}: {change.name}" for p, _, change in loads if change is not None]
    summary = ", ".join(
        [f"{len(loads)} parameters from {path}", f"{len(left)} left out", *adapted]
        + ([f"started afresh: {' '.join(fresh)}"] if fresh else [])
    )
    return LoadedWeights(traverse_util.unflatten_dict(loaded, sep="/"), summary)


def _parameters(config: Any) -> list[_Parameter]:
    architecture = architecture_of(config)
    shapes = target_shapes(architecture, config)
    layers: dict[str, list[Assignment]] = {path: [] for path in shapes}
    for assignment in assignments(TABLES[architecture], shapes):
        layers[assignment.target].append(assignment)
    return [_Parameter(path, shape, tuple(layers[path])) for path, shape in shapes.items()]


def _contradictions(source: Any, target: Any) -> list[str]:
    """Fields in which two encoders differ although no adaptation makes up for it."""
    source, target = encoder_config(source), encoder_config(target)
    if type(source) is not type(target):
        return [f"config: expected {type(target).__name__}, found {type(source).__name__}"]
    return [
        f"config.encoder.{field.name}: expected {wanted!r}, found {found!r}"
        for field in dataclasses.fields(target)
        if field.name not in _FREE_FIELDS
        and (wanted := getattr(target, field.name)) != (found := getattr(source, field.name))
    ]


def _adaptation(
    parameter: _Parameter, found: _Parameter, source: Any, target: Any
) -> Adaptation | None:
    """The change that makes a saved parameter fit, None if it fits as it is.

    Raises:
      ValueError: nothing makes it fit.
    """
    shapes = found.key_shapes
    if _HEAD & shapes.keys():
        try:
            changes = fit(shapes, source, target)
        except ValueError:
            raise ValueError(
                f"expected {target.num_classes} classes, found {source.num_classes}, of which only"
                " K710's can be chosen for K400, K600 and K700; set `new_head` to start an"
                " untrained one"
            ) from None
    else:
        changes = fit(shapes, source, target)
    adapted = shapes | {key: change.shape for key, change in changes.items()}
    # Heads of attention split the same kernel differently without showing in a key's shape.
    if adapted != parameter.key_shapes or (not changes and parameter.shape != found.shape):
        raise ValueError(f"expected shape {parameter.shape}, found {found.shape}")
    return next(iter(changes.values()), None)


def _adapt(
    array: jax.Array, parameter: _Parameter, adaptation: Adaptation, mesh: Mesh | None
) -> np.ndarray:
    """An adapted parameter, whole on every host: tables, heads and patch kernels are small."""
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        array = jax.jit(lambda x: x, out_shardings=whole)(array)
    (layer,) = parameter.layers
    (tensor,) = layer.transform.inverse(np.asarray(array))
    return layer.transform.forward([adaptation.apply(tensor)], layer.shape)


def _place(array: np.ndarray | jax.Array, target: Any) -> jax.Array:
    """An array with the dtype and sharding of another."""
    if isinstance(array, np.ndarray):
        array = array.astype(target.dtype)
        return jax.make_array_from_callback(
            array.shape, target.sharding, lambda index: array[index]
        )
    return jax.device_put(array.astype(target.dtype), target.sharding)


def _mesh_of(leaves: Iterable[Any]) -> Mesh | None:
    """The mesh on which arrays are spread; None for those of a single device."""
    sharding = next(iter(leaves)).sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else None
