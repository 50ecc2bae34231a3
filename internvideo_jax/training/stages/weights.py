"""Weights of a saved model for a model of other clips, other classes or another kind.

A classifier starts from a pre-trained student or another classifier; a teacher is the encoder of
whatever was trained, and a single tower may be that of a larger model. Parameters are matched by
path, wherever the encoder lies. The family says how one is fitted (position tables, patch kernels,
K710 heads); of a model of another kind all but the encoder is left out; everything else that does
not fit is listed at once. A plain BERT's last layers become fusion layers, whose cross attention
starts untrained.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax import saved_model
from internvideo_jax.config import from_dict
from internvideo_jax.models import ARCHITECTURES, abstract_variables, build
from internvideo_jax.models.bert import BertConfig
from internvideo_jax.models.dual_encoder import DualEncoder
from internvideo_jax.parallel.sharding import placed
from internvideo_jax.training.stages.weight_match import ENCODER, WeightMatch, match_weights

log = logging.getLogger(__name__)

PyTree = Any


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
    arrays, _ = _as_wanted(saved.variables, saved.config, config)

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
        loaded = {key.replace(ENCODER, "params/", 1): array for key, array in loaded.items()}
    log.info("%s: %s", name, summary)
    return traverse_util.unflatten_dict(loaded, sep="/")


def check_weights(
    path: str,
    config: Any,
    like: PyTree,
    *,
    may_start_afresh: Callable[[str], bool] = lambda path: False,
    new_head: bool = False,
) -> WeightMatch:
    """Checks by a saved model's description what `load_weights` asks of it; no array is read.

    Arguments and errors are those of `load_weights`.
    """
    description = saved_model.read_description(epath.Path(path).expanduser())
    architecture = ARCHITECTURES[description["architecture"]]
    where = f"{path}/{saved_model.DESCRIPTION}: config"
    saved: Any = from_dict(architecture.config_cls, description["config"], where)
    shapes, saved = _as_wanted(abstract_variables(architecture.module_cls(saved)), saved, config)
    targets = _nested(like, config)
    return match_weights(path, shapes, saved, config, targets, may_start_afresh, new_head)


def _is_bare(config: Any) -> bool:
    """Whether a model is a single tower."""
    return not hasattr(config, "encoder") and not isinstance(build(config), DualEncoder)


def _nested(variables: PyTree, config: Any) -> dict[str, Any]:
    """Variables by path; those of a bare encoder as if it lay inside a model."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    if not _is_bare(config):
        return flat
    return {name.replace("params/", ENCODER, 1): array for name, array in flat.items()}


def _as_wanted(variables: PyTree, source: Any, target: Any) -> tuple[dict[str, Any], Any]:
    """Parameters by path, arrays or shapes, as a model of another kind would have them.

    Of a model of several towers they are those of the one that the other model has.

    Returns:
      The parameters, and the config that they then are of.
    """
    arrays, module = _nested(variables, source), build(source)
    if isinstance(module, DualEncoder) and type(source) is not type(target):
        text = module.text_tower()
        is_text = text is not None and type(text[0].config) is type(target)
        found = text if is_text else module.video_tower()
        if found is not None:
            tower, names = found
            prefix = "/".join(("params", *names, ""))
            inside = {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}
            arrays, source = {f"{ENCODER}{n}": x for n, x in inside.items()}, tower.config
    return _as_grouped(arrays, source, target)


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
