"""AdamW with the parameter groups of the released recipes.

Groups follow from a parameter's path in our trees: a layer's place is its index on the leading axis
of the stacked `blocks`, and shapes say nothing (a per-head bias has several dimensions).

Source: `optim_factory.py` of upstream `InternVideo2/single_modality`.
"""

import re
from typing import Any

import jax
import numpy as np
import optax

PyTree = Any

_DECAYED = re.compile(r"kernel")
# Biases, norm and layer scales, and what upstream's models list by name.
_NOT_DECAYED = re.compile(
    r"bias|scale|gamma|cls_token|(clip_|mae_)?pos_embed(_spatial|_temporal|_cls)?"
)
_STACK = "blocks"
# The parameters before the first block. Upstream leaves the separable position tables out.
_INPUT = {"cls_token", "pos_embed", "patch_embed"}


def weight_decay_mask(params: PyTree) -> PyTree:
    """Tree of bools: whether weight decay applies to each parameter.

    Raises:
      ValueError: a parameter's name has no rule, all such listed.
    """
    paths = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    unknown = ["/".join(p) for p in paths if not (_is_decayed(p) or _NOT_DECAYED.fullmatch(p[-1]))]
    if unknown:
        raise ValueError(
            f"expected parameter names with a weight-decay rule, found {', '.join(unknown)};"
            " add a rule for them in training/optimizer.py"
        )
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_decayed(_names(path)), params)


def layer_ids(params: PyTree) -> PyTree:
    """Tree of int arrays that broadcast against the parameters: the layer each belongs to.

    Class token, joint position table and patch embedding are layer 0, block i is layer i + 1 (a
    vector on the leading axis of the stacked parameters), all else is layer `depth + 1`.

    Raises:
      ValueError: the stacked parameters disagree on the depth, or there are none.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    depths = {leaf.shape[0] for path, leaf in leaves if _STACK in _names(path)}
    if len(depths) != 1:
        raise ValueError(
            f"expected parameters stacked under '{_STACK}' with one number of layers on their"
            f" leading axis, found {sorted(depths) or 'none'}; layer decay needs such a model"
        )
    depth = depths.pop()

    def layer_id(path: tuple[Any, ...], leaf: jax.Array) -> np.ndarray:
        names = [name for name in _names(path) if name != "encoder"]
        if _STACK in names:
            return np.arange(1, depth + 1).reshape(depth, *[1] * (leaf.ndim - 1))
        return np.asarray(0 if names[0] in _INPUT else depth + 1)

    return jax.tree_util.tree_map_with_path(layer_id, params)


def layer_scales(params: PyTree, layer_decay: float) -> PyTree:
    """Tree of learning-rate factors `layer_decay ** (depth + 1 - id)`, float32, see `layer_ids`."""
    ids = layer_ids(params)
    last = max(int(leaf.max()) for leaf in jax.tree.leaves(ids))
    return jax.tree.map(lambda i: np.float32(np.float64(layer_decay) ** (last - i)), ids)


def scale_by_layer(layer_decay: float) -> optax.GradientTransformation:
    """Multiplies updates by `layer_scales`."""

    def scale(updates: PyTree, params: PyTree | None = None) -> PyTree:
        return jax.tree.map(
            lambda u, s: u * s.astype(u.dtype),
            updates,
            layer_scales(updates, layer_decay),
        )

    return optax.stateless(scale)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay: `p -= lr * scale * (m / (sqrt(v) + eps) + wd * p)`.

    The defaults are those of upstream's fine-tuning; pre-training has `b2=0.98, eps=1e-6` and clips
    the global gradient norm at 3.

    Args:
      learning_rate: rate, or schedule of the step.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: wd, applied where `weight_decay_mask` says.
      layer_decay: base of `layer_scales`; at 1 and above, as upstream, there are none.
      max_grad_norm: bound of the global gradient norm; None does not clip.
    """
    steps = [
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    ]
    if layer_decay < 1:
        steps.append(scale_by_layer(layer_decay))
    if max_grad_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(max_grad_norm))
    return optax.chain(*steps)


def _is_decayed(names: list[str]) -> bool:
    return _DECAYED.fullmatch(names[-1]) is not None


def _names(path: tuple[Any, ...]) -> list[str]:
    """Keys of a path; what boxes of logical axes add to it is left out."""
    return [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
