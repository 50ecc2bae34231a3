"""Weights of a saved model for a model of other clips, other classes or another kind.

A classifier starts from a pre-trained student or another classifier; a teacher is the encoder of
whatever was trained. Parameters are matched by path, wherever the encoder lies. The family says how
one is fitted (position tables, patch kernels, K710 heads); of a model of another kind all but the
encoder is left out; everything else that does not fit is listed at once.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax import saved_model
from internvideo_jax.convert.engine.adaptations import Adaptation
from internvideo_jax.convert.engine.family import family_of
from internvideo_jax.convert.engine.upstream import architecture_of

log = logging.getLogger(__name__)

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
_ENCODER = "params/encoder/"
_HEAD = "params/head/"


def load_weights(
    path: str,
    config: Any,
    like: PyTree,
    *,
    name: str,
    dtype: str,
    may_start_afresh: Callable[[str], bool] = lambda path: False,
    new_head: bool = False,
) -> PyTree:
    """Variables of a model from a saved model, which may be of another kind or for other clips.

    Logs what was loaded, adapted, left out and started afresh.

    Args:
      path: directory of the saved model.
      config: config of the model that the variables are for.
      like: its variables, or their shapes with shardings; the result has their dtypes.
      name: how the log calls the model.
      dtype: in which kernels are read.
      may_start_afresh: by path ("params/head/kernel"), whether a parameter that the saved model
        lacks keeps its value in `like`.
      new_head: leave the saved classifier's last layer out.

    Raises:
      ValueError: not a saved model, or misfits: parameters that are missing, extra or of another
        shape, fields of the encoders' configs that contradict each other; all are listed.
    """
    targets = _nested(like, config)
    mesh = _mesh_of(targets.values())
    saved = saved_model.load(path, dtype=dtype, storage=dtype, mesh=mesh)
    left = _nested(saved.variables, saved.config)
    if new_head:
        left = {key: array for key, array in left.items() if not key.startswith(_HEAD)}

    problems = _contradictions(saved.config, config)
    loaded: dict[str, Any] = {}
    adapted: dict[str, Adaptation] = {}
    fresh = []
    for key, target in targets.items():
        if key in left:
            loaded[key] = left.pop(key)
            try:
                change = _fit(key, loaded[key].shape, target.shape, saved.config, config)
            except ValueError as error:
                problems.append(f"{key}: {error}")
            else:
                adapted |= {key: change} if change else {}
        elif may_start_afresh(key):
            fresh.append(key)
        else:
            problems.append(f"{key}: missing, expected shape {target.shape}")
    is_same_kind = type(saved.config) is type(config)
    problems += [
        f"{key}: not part of the model, found shape {array.shape}"
        for key, array in left.items()
        if is_same_kind or key.startswith(_ENCODER)
    ]
    if problems:
        raise ValueError(
            f"the saved model {path} does not fit: {len(problems)} misfits\n  "
            + "\n  ".join(problems)
            + "\ncheck that this is the right model, and the stage's config"
        )

    for key, array in loaded.items():
        if key in adapted:
            array = adapted[key].apply(_whole(array, mesh))
        loaded[key] = _place(array, targets[key])
    summary = ", ".join(
        [f"{len(loaded)} parameters from {path}", f"{len(left)} left out"]
        + [f"{key}: {change.name}" for key, change in adapted.items()]
        + ([f"started afresh: {' '.join(fresh)}"] if fresh else [])
    )
    loaded |= {key: targets[key] for key in fresh}
    if not hasattr(config, "encoder"):
        loaded = {key.replace(_ENCODER, "params/", 1): array for key, array in loaded.items()}
    log.info("%s: %s", name, summary)
    return traverse_util.unflatten_dict(loaded, sep="/")


def _nested(variables: PyTree, config: Any) -> dict[str, Any]:
    """Variables by path; those of a bare encoder as if it lay inside a model."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    if hasattr(config, "encoder"):
        return flat
    return {name.replace("params/", _ENCODER, 1): array for name, array in flat.items()}


def _contradictions(source: Any, target: Any) -> list[str]:
    """Fields in which two encoders differ although no adaptation makes up for it."""
    source, target = (getattr(config, "encoder", config) for config in (source, target))
    if type(source) is not type(target):
        return [f"config: expected {type(target).__name__}, found {type(source).__name__}"]
    return [
        f"config.encoder.{field.name}: expected {wanted!r}, found {found!r}"
        for field in dataclasses.fields(target)
        if field.name not in _FREE_FIELDS
        and (wanted := getattr(target, field.name)) != (found := getattr(source, field.name))
    ]


def _fit(
    name: str, shape: tuple[int, ...], wanted: tuple[int, ...], source: Any, target: Any
) -> Adaptation | None:
    """The change that makes a saved parameter fit, None if it fits as it is.

    Raises:
      ValueError: nothing makes it fit.
    """
    family = family_of(architecture_of(target))
    change = family.fit(name, shape, source, target, None, shape)
    if (change.shape if change else shape) != wanted:
        raise ValueError(f"expected shape {wanted}, found {shape}")
    return change


def _whole(array: jax.Array, mesh: Mesh | None) -> np.ndarray:
    """All of an array on every host: tables, heads and patch kernels are small."""
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        array = jax.jit(lambda x: x, out_shardings=whole)(array)
    return np.asarray(array)


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
