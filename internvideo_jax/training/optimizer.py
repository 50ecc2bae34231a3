"""AdamW with the parameter groups of the released recipes.

A parameter's group follows from its path below `params`. Which parameters decay, and which layer
each belongs to, is the model's to say (`Tower.is_decayed`, `Tower.layer_of`); shapes say nothing,
since a per-head bias has several dimensions.

Source: `optim_factory.py` of upstream `InternVideo2/single_modality`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax

from internvideo_jax.models import Tower

PyTree = Any


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


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as the recipes state it.

    The defaults are those of upstream's fine-tuning; pre-training has betas of 0.9 and 0.98, an eps
    of 1e-6, and clips the global gradient norm at 3.

    Attributes:
      lr: peak learning rate, for the batch as it is: another batch size does not change it.
      min_lr: rate that the cosine tends to.
      warmup_lr: rate of the first step.
      schedule: `warmup_cosine` or `floored_cosine` of `training.schedules`; the latter begins at 0,
        and `min_lr` is its floor.
      betas: decays of the first and second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled, on kernels only.
      layer_decay: factor between the rates of neighbouring layers; 1 has none.
      max_grad_norm: bound of the global gradient norm; None does not clip.
      parts: parameters with a learning rate or weight decay of their own, or frozen ones.
    """

    lr: float
    min_lr: float = 0.0
    warmup_lr: float = 0.0
    schedule: Literal["warmup_cosine", "floored_cosine"] = "warmup_cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    max_grad_norm: float | None = None
    parts: tuple[PartConfig, ...] = ()

    def __post_init__(self) -> None:
        norm = self.max_grad_norm
        ranges = [
            ("lr", 0 < self.lr <= 1, "a number above 0 and at most 1, as AdamW takes it"),
            ("min_lr", self.min_lr >= 0, "at least 0"),
            ("warmup_lr", self.warmup_lr >= 0, "at least 0"),
            (
                "warmup_lr",
                self.schedule == "warmup_cosine" or not self.warmup_lr,
                "0 with schedule='floored_cosine'",
            ),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "numbers in [0, 1)"),
            ("eps", self.eps > 0, "a number above 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("layer_decay", 0 < self.layer_decay <= 1, "a number in (0, 1]"),
            ("max_grad_norm", norm is None or norm > 0, "a number above 0, or none"),
        ]
        for name, is_valid, expected in ranges:
            if not is_valid:
                raise ValueError(f"{name}: expected {expected}, found {getattr(self, name)}")


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


def layer_ids(params: PyTree, model: Tower) -> PyTree:
    """Tree of int arrays that broadcast against the parameters: the layer each belongs to."""

    def layer_id(path: str, leaf: jax.Array) -> np.ndarray:
        ids = np.asarray(model.layer_of(path))
        return ids.reshape(*ids.shape, *[1] * (leaf.ndim - 1)) if ids.ndim else ids

    return map_paths(layer_id, params)


def layer_scales(params: PyTree, model: Tower, layer_decay: float) -> PyTree:
    """Tree of learning-rate factors `layer_decay ** (depth + 1 - id)`, float32, see `layer_ids`."""
    ids, last = layer_ids(params, model), model.last_layer
    return jax.tree.map(lambda i: np.float32(np.float64(layer_decay) ** (last - i)), ids)


def adamw(
    learning_rate: optax.ScalarOrSchedule, config: OptimizerConfig, model: Tower
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay: `p -= lr * scale * (m / (sqrt(v) + eps) + wd * p)`.

    Args:
      learning_rate: rate, or schedule of the step, in place of the config's.
      config: all else.
      model: says which parameters decay, and for layer decay which layer each is of.
    """
    parts = config.parts

    def decay(updates: PyTree, params: PyTree) -> PyTree:
        def rate(path: str, leaf: Any) -> float:
            own = part_of(path, parts).weight_decay
            wanted = config.weight_decay if own is None else own
            return wanted if model.is_decayed(path) else 0.0

        rates = map_paths(rate, params)
        return jax.tree.map(lambda u, p, wd: u + wd * p if wd else u, updates, params, rates)

    def scale_by_layer(updates: PyTree, _: PyTree) -> PyTree:
        scales = layer_scales(updates, model, config.layer_decay)
        return jax.tree.map(lambda u, s: u * s.astype(u.dtype), updates, scales)

    def scale_by_part(updates: PyTree, _: PyTree) -> PyTree:
        return map_paths(lambda path, u: u * part_of(path, parts).lr_factor, updates)

    steps = [
        optax.scale_by_adam(*config.betas, eps=config.eps),
        optax.stateless(decay),
        optax.scale_by_learning_rate(learning_rate),
    ]
    if config.max_grad_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(config.max_grad_norm))
    if config.layer_decay < 1:
        steps.append(optax.stateless(scale_by_layer))
    if parts:
        steps.append(optax.stateless(scale_by_part))
    return optax.chain(*steps)
