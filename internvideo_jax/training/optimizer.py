"""AdamW with the parameter groups of the released recipes.

A parameter's group follows from its path below `params`. Which parameters decay, and which layer
each belongs to, is the model's to say (`Stage.is_decayed`, `Stage.layer_of`); shapes say nothing,
since a per-head bias has several dimensions.

Source: `optim_factory.py` of upstream `InternVideo2/single_modality`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

PyTree = Any
# The layer of a parameter: 0 the input, i + 1 block i (all of them for one that is stacked over the
# blocks), depth + 1 the rest.
LayerOf = Callable[[str], int | np.ndarray]


@dataclasses.dataclass(frozen=True)
class PartConfig:
    """Parameters that are trained otherwise than the rest.

    Attributes:
      pattern: regular expression of their whole paths below `params`, e.g. `encoder/.*`; where
        several match, the first one counts.
      lr_factor: of their learning rate, at all steps.
      weight_decay: in place of the optimizer's; None leaves that.
      frozen: whether they stay as they are.
    """

    pattern: str
    lr_factor: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"pattern: expected a regular expression, found {self.pattern!r}: {error}"
            ) from None
        if self.lr_factor < 0 or (self.weight_decay or 0) < 0:
            raise ValueError(
                f"expected lr_factor and weight_decay of at least 0, found {self.lr_factor} and"
                f" {self.weight_decay}; to leave parameters as they are, set frozen"
            )


def part_of(path: str, parts: Sequence[PartConfig]) -> PartConfig:
    """The part that a parameter belongs to; one without changes if there is none."""
    matching = (part for part in parts if re.fullmatch(part.pattern, path))
    return next(matching, PartConfig(".*"))


def map_paths(fn: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`fn` of each leaf's "/"-joined path and the leaf; paths do not show boxes of logical axes."""

    def call(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return fn("/".join(names), leaf)

    return jax.tree_util.tree_map_with_path(call, tree)


def layer_ids(params: PyTree, layer_of: LayerOf) -> PyTree:
    """Tree of int arrays that broadcast against the parameters: the layer each belongs to."""

    def layer_id(path: str, leaf: jax.Array) -> np.ndarray:
        ids = np.asarray(layer_of(path))
        return ids.reshape(*ids.shape, *[1] * (leaf.ndim - 1)) if ids.ndim else ids

    return map_paths(layer_id, params)


def layer_scales(params: PyTree, layer_of: LayerOf, layer_decay: float) -> PyTree:
    """Tree of learning-rate factors `layer_decay ** (depth + 1 - id)`, float32, see `layer_ids`."""
    ids = layer_ids(params, layer_of)
    last = max(int(leaf.max()) for leaf in jax.tree.leaves(ids))
    return jax.tree.map(lambda i: np.float32(np.float64(layer_decay) ** (last - i)), ids)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    is_decayed: Callable[[str], bool],
    layer_of: LayerOf,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    max_grad_norm: float | None = None,
    parts: Sequence[PartConfig] = (),
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay: `p -= lr * scale * (m / (sqrt(v) + eps) + wd * p)`.

    The defaults are those of upstream's fine-tuning; pre-training has `b2=0.98, eps=1e-6` and clips
    the global gradient norm at 3.

    Args:
      learning_rate: rate, or schedule of the step.
      is_decayed: by path, whether weight decay applies.
      layer_of: by path, the layer; asked if there is layer decay.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: wd.
      layer_decay: base of `layer_scales`; at 1 and above, as upstream, there are none.
      max_grad_norm: bound of the global gradient norm; None does not clip.
      parts: what is trained at another rate, or decays otherwise.
    """

    def decay(updates: PyTree, params: PyTree) -> PyTree:
        def rate(path: str, leaf: Any) -> float:
            own = part_of(path, parts).weight_decay
            return (weight_decay if own is None else own) if is_decayed(path) else 0.0

        rates = map_paths(rate, params)
        return jax.tree.map(lambda u, p, wd: u + wd * p if wd else u, updates, params, rates)

    def scale_by_layer(updates: PyTree, _: PyTree) -> PyTree:
        scales = layer_scales(updates, layer_of, layer_decay)
        return jax.tree.map(lambda u, s: u * s.astype(u.dtype), updates, scales)

    def scale_by_part(updates: PyTree, _: PyTree) -> PyTree:
        return map_paths(lambda path, u: u * part_of(path, parts).lr_factor, updates)

    steps = [
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.stateless(decay),
        optax.scale_by_learning_rate(learning_rate),
    ]
    if max_grad_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(max_grad_norm))
    if layer_decay < 1:
        steps.append(optax.stateless(scale_by_layer))
    if parts:
        steps.append(optax.stateless(scale_by_part))
    return optax.chain(*steps)
