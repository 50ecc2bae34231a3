"""Weights of a saved model for a model of other clips, other classes or another kind.

A classifier starts from a pre-trained student or another classifier; a teacher is the encoder of
whatever was trained. Parameters are matched by path, wherever the encoder lies. The family says how
one is fitted (position tables, patch kernels, K710 heads); of a model of another kind all but the
encoder is left out; everything else that does not fit is listed at once. A plain BERT's last layers
become fusion layers, whose cross attention starts untrained.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax import saved_model
from internvideo_jax.config import from_dict
from internvideo_jax.convert.engine.adaptations import Adaptation
from internvideo_jax.convert.engine.family import family_of
from internvideo_jax.convert.engine.upstream import architecture_of
from internvideo_jax.models import ARCHITECTURES, abstract_variables
from internvideo_jax.models.bert import BertConfig
from internvideo_jax.models.stage2 import Stage2Config
from internvideo_jax.parallel.sharding import placed

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
    "image_positions",
    "dropout_rate",
    "attention_dropout_rate",
    "mlm_head",
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
    match = check_weights(path, config, like, may_start_afresh=may_start_afresh, new_head=new_head)
    saved = saved_model.load(path, dtype=dtype, storage=dtype, mesh=mesh)
    arrays, _ = _as_grouped(_nested(saved.variables, saved.config), saved.config, config)

    loaded: dict[str, Any] = {}
    for key in match.taken:
        array = arrays[key]
        if key in match.adapted:
            array = match.adapted[key].apply(_whole(array, mesh))
        loaded[key] = _place(array, targets[key])
    summary = ", ".join(
        [f"{len(loaded)} parameters from {path}", f"{match.num_left} left out"]
        + [f"{key}: {change.name}" for key, change in match.adapted.items()]
        + ([f"started afresh: {' '.join(match.fresh)}"] if match.fresh else [])
    )
    loaded |= {key: targets[key] for key in match.fresh}
    if _is_bare(config):
        loaded = {key.replace(_ENCODER, "params/", 1): array for key, array in loaded.items()}
    log.info("%s: %s", name, summary)
    return traverse_util.unflatten_dict(loaded, sep="/")


def check_weights(
    path: str,
    config: Any,
    like: PyTree,
    *,
    may_start_afresh: Callable[[str], bool] = lambda path: False,
    new_head: bool = False,
) -> "WeightMatch":
    """Checks by a saved model's description what `load_weights` asks of it; no array is read.

    Arguments and errors are those of `load_weights`.
    """
    description = saved_model.read_description(epath.Path(path).expanduser())
    architecture = ARCHITECTURES[description["architecture"]]
    where = f"{path}/{saved_model.DESCRIPTION}: config"
    saved: Any = from_dict(architecture.config_cls, description["config"], where)
    shapes = _nested(abstract_variables(architecture.module_cls(saved)), saved)
    shapes, saved = _as_grouped(shapes, saved, config)
    targets = _nested(like, config)
    return _match(path, shapes, saved, config, targets, may_start_afresh, new_head)


class WeightMatch(NamedTuple):
    """Which parameters of a model come from where.

    Attributes:
      taken: those of the saved model.
      adapted: what is done to some of these.
      fresh: those that keep the values that they start with.
      num_left: parameters of the saved model without a use.
    """

    taken: list[str]
    adapted: dict[str, Adaptation]
    fresh: list[str]
    num_left: int


def _match(
    path: str,
    shapes: Mapping[str, Any],
    saved: Any,
    config: Any,
    targets: Mapping[str, Any],
    may_start_afresh: Callable[[str], bool],
    new_head: bool,
) -> WeightMatch:
    """Matches the shapes of a saved model's parameters with those that are wanted."""
    left = {n: x.shape for n, x in shapes.items() if not (new_head and n.startswith(_HEAD))}
    problems = _contradictions(saved, config)
    match = WeightMatch([], {}, [], len(left) - len(left.keys() & targets.keys()))
    for key, target in targets.items():
        if key in left:
            shape = left.pop(key)
            match.taken.append(key)
            try:
                change = _fit(key, shape, target.shape, saved, config)
            except ValueError as error:
                problems.append(f"{key}: {error}")
            else:
                match.adapted.update({key: change} if change else {})
        elif may_start_afresh(key):
            match.fresh.append(key)
        else:
            problems.append(f"{key}: missing, expected shape {target.shape}")
    is_same_kind = type(saved) is type(config)
    problems += [
        f"{key}: not part of the model, found shape {shape}"
        for key, shape in left.items()
        if is_same_kind or key.startswith(_ENCODER)
    ]
    if problems:
        raise ValueError(
            f"the saved model {path} does not fit: {len(problems)} misfits\n  "
            + "\n  ".join(problems)
            + "\ncheck that this is the right model, and the stage's config"
        )
    return match


def _is_bare(config: Any) -> bool:
    """Whether a model is a single tower."""
    return not hasattr(config, "encoder") and not isinstance(config, Stage2Config)


def _nested(variables: PyTree, config: Any) -> dict[str, Any]:
    """Variables by path; those of a bare encoder as if it lay inside a model."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    if not _is_bare(config):
        return flat
    return {name.replace("params/", _ENCODER, 1): array for name, array in flat.items()}


def _as_grouped(arrays: dict[str, Any], source: Any, target: Any) -> tuple[dict[str, Any], Any]:
    """A plain text tower's layers, arrays or shapes, in the groups of one with fusion layers.

    Returns:
      The parameters, and the config that they then are of; anything else stays as it is.
    """
    are_texts = isinstance(source, BertConfig) and isinstance(target, BertConfig)
    if not are_texts or source.cross_width is not None or target.cross_width is None:
        return arrays, source
    first = target.fusion_layer
    groups = {"text_blocks": slice(first), "fusion_blocks": slice(first, None)}

    def cut(x: Any, layers: slice) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.eval_shape(lambda x: x[layers], x)
        return x[layers]

    grouped: dict[str, Any] = {}
    for path, x in arrays.items():
        before, is_stacked, after = path.partition("/text_blocks/")
        if is_stacked:
            grouped |= {f"{before}/{name}/{after}": cut(x, of) for name, of in groups.items()}
        else:
            grouped[path] = x
    changes = {"fusion_layer": first, "cross_width": target.cross_width}
    return grouped, dataclasses.replace(source, **changes)


def _towers(config: Any) -> dict[str, Any]:
    """The configs of a model's towers by their place in its own."""
    if not isinstance(config, Stage2Config):
        return {"encoder": getattr(config, "encoder", config)}
    towers = {"vision.encoder": config.vision.encoder, "text": config.text, "audio": config.audio}
    return {name: tower for name, tower in towers.items() if tower is not None}


def _contradictions(source: Any, target: Any) -> list[str]:
    """Fields in which towers differ although no adaptation makes up for it."""
    found, problems = _towers(source), []
    for name, tower in _towers(target).items():
        other = found.get(name)
        if other is None and isinstance(source, Stage2Config):
            # Its parameters start afresh, or are missing.
            continue
        if other is None or type(other) is not type(tower):
            kind = type(source if other is None else other).__name__
            problems.append(f"config: expected {type(tower).__name__}, found {kind}")
            continue
        problems += [
            f"config.{name}.{field.name}: expected {wanted!r}, found {got!r}"
            for field in dataclasses.fields(tower)
            if field.name not in _FREE_FIELDS
            and (wanted := getattr(tower, field.name)) != (got := getattr(other, field.name))
        ]
    return problems


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
        return placed(array.astype(target.dtype), target.sharding)
    return jax.device_put(array.astype(target.dtype), target.sharding)


def _mesh_of(leaves: Iterable[Any]) -> Mesh | None:
    """The mesh on which arrays are spread; None for those of a single device."""
    sharding = next(iter(leaves)).sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else None
