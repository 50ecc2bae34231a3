"""Conversion tables: which PyTorch keys make which parameter, and which keys may be left out."""

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np

from internvideo_jax.convert.engine.transforms import IDENTITY, Shape, Transform

LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class InitialValue:
    """What a parameter gets that a checkpoint may lack: a name for reports, and float32 values."""

    name: str
    make: Callable[[Shape], np.ndarray]


ONES = InitialValue("ones", lambda shape: np.ones(shape, np.float32))
ZEROS = InitialValue("zeros", lambda shape: np.zeros(shape, np.float32))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table: `keys` make the parameter `target`.

    Attributes:
      target: path in the flax variables, joined by "/" ("params/blocks/mlp/fc1/kernel").
      keys: PyTorch keys. Where they hold "{layer}", the parameter is stacked on its first axis and
        each layer has keys of its own.
      transform: how the tensors become the parameter (one layer of it).
      initial: what fills the parameter where all its keys are absent; None: they must be there.
    """

    target: str
    keys: tuple[str, ...]
    transform: Transform = IDENTITY
    initial: InitialValue | None = None

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading axis of layers."""
        return LAYER in self.keys[0]


@dataclasses.dataclass(frozen=True)
class Ignore:
    """Keys that may be left unread: a regular expression for the whole key, and why."""

    pattern: str
    reason: str

    def matches(self, key: str) -> bool:
        """Whether this rule covers `key`."""
        return re.fullmatch(self.pattern, key) is not None


@dataclasses.dataclass(frozen=True)
class Table:
    """All rules of one architecture. Rules whose target a config lacks do not apply to it."""

    rules: tuple[Rule, ...]
    ignored: tuple[Ignore, ...] = ()


def rule(
    target: str,
    keys: str,
    transform: Transform = IDENTITY,
    initial: InitialValue | None = None,
) -> Rule:
    """A rule for `params/<target>`; `keys` are separated by spaces."""
    return Rule(f"params/{target}", tuple(keys.split()), transform, initial)


def nested(rules: Iterable[Rule], module: str) -> tuple[Rule, ...]:
    """The same rules for a model that holds theirs as the submodule `module`."""

    def move(target: str) -> str:
        collection, path = target.split("/", 1)
        return f"{collection}/{module}/{path}"

    return tuple(dataclasses.replace(r, target=move(r.target)) for r in rules)


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One parameter, or one layer of a stacked one, and the keys that make it.

    Attributes:
      target: path of the parameter.
      index: position on the parameter's first axis; None if it is not stacked.
      shape: shape of the parameter, or of its layer.
      keys: PyTorch keys.
      transform: how their tensors become the parameter.
      initial: see `Rule`.
    """

    target: str
    index: int | None
    shape: Shape
    keys: tuple[str, ...]
    transform: Transform
    initial: InitialValue | None = None

    @property
    def source_shapes(self) -> tuple[Shape, ...]:
        """Shapes that the tensors of `keys` must have."""
        return self.transform.source_shapes(self.shape)


def assignments(table: Table, targets: dict[str, Shape]) -> tuple[Assignment, ...]:
    """Every parameter of a model with the keys that make it, in the order of `targets`.

    Args:
      table: the architecture's rules.
      targets: shape of each parameter by its path.

    Raises:
      KeyError: the table lacks a rule for a parameter (a fault of the table, not of a checkpoint).
    """
    rules = {r.target: r for r in table.rules}
    found = []
    for target, shape in targets.items():
        r = rules[target]
        layers = range(shape[0]) if r.stacked else [None]
        for index in layers:
            keys = tuple(k.replace(LAYER, str(index)) for k in r.keys)
            layer_shape = shape[1:] if r.stacked else shape
            found.append(Assignment(target, index, layer_shape, keys, r.transform, r.initial))
    return tuple(found)
