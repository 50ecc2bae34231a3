"""Conversion tables: which PyTorch keys make which parameters, and which keys may be left out."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from internvideo_jax.convert.engine.transforms import IDENTITY, LINEAR, Pattern, Shape, Transform

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
    """One line of a table: `keys` make the parameters `targets`.

    Attributes:
      targets: paths in the flax variables, joined by "/" ("params/blocks/mlp/fc1/kernel"). A model
        has all of them or none; a rule does not apply to a model that has none.
      keys: PyTorch keys. Where they hold "{layer}", the parameters are stacked on their first axis
        and each layer has keys of its own.
      transform: how the tensors become the parameters (one layer of them).
      initial: what fills the parameters where all keys are absent; None: they must be there.
      fresh: what fills them where a new head is asked for.
      first_layer: number, in the keys, of the parameters' first layer.
      instead: (keys, transform) of other forms that a file may have. One is taken where a file has
        all of its keys, with as many axes as it wants; an export writes `keys`.
    """

    targets: tuple[str, ...]
    keys: tuple[str, ...]
    transform: Transform = IDENTITY
    initial: InitialValue | None = None
    fresh: InitialValue | None = None
    first_layer: int = 0
    instead: tuple[tuple[tuple[str, ...], Transform], ...] = ()


@dataclasses.dataclass(frozen=True)
class Ignore:
    """Keys that may be left unread: a regular expression for the whole key, and why."""

    pattern: str
    reason: str

    def matches(self, key: str) -> bool:
        """Whether this rule covers `key`."""
        return re.fullmatch(self.pattern, key) is not None


# Of any file: torch.optim.swa_utils counts models, thop adds buffers to every module.
COUNTERS = Ignore(r"(.*\.)?(n_averaged|total_ops|total_params)", "counters, no weights")


@dataclasses.dataclass(frozen=True)
class Tie:
    """Keys whose tensors repeat that of `key`: a regular expression for them.

    They may be absent. Those that are there must equal it, and one stands in for it if it is not.
    """

    pattern: str
    key: str


@dataclasses.dataclass(frozen=True)
class Table:
    """All that is known of the keys of one architecture."""

    rules: tuple[Rule, ...]
    ignored: tuple[Ignore, ...] = ()
    tied: tuple[Tie, ...] = ()


def rule(
    targets: str,
    keys: str,
    transform: Transform = IDENTITY,
    *,
    initial: InitialValue | None = None,
    fresh: InitialValue | None = None,
    instead: Mapping[str, Transform] | None = None,
) -> Rule:
    """A rule for `params/<target>`; targets and keys are separated by spaces."""
    return Rule(
        tuple(f"params/{target}" for target in targets.split()),
        tuple(keys.split()),
        transform,
        initial,
        fresh,
        instead=tuple((tuple(k.split()), t) for k, t in (instead or {}).items()),
    )


def layer(
    target: str, keys: str, kernel: Transform = LINEAR, bias: Transform = IDENTITY
) -> tuple[Rule, Rule]:
    """Kernel and bias of a linear layer."""
    return (
        rule(f"{target}/kernel", f"{keys}.weight", kernel),
        rule(f"{target}/bias", f"{keys}.bias", bias),
    )


def norm(target: str, keys: str) -> tuple[Rule, Rule]:
    """Scale and bias of a norm."""
    return rule(f"{target}/scale", f"{keys}.weight"), rule(f"{target}/bias", f"{keys}.bias")


def nested(rules: Iterable[Rule], module: str) -> tuple[Rule, ...]:
    """The same rules for a model that holds theirs as the submodule `module`."""

    def move(target: str) -> str:
        collection, path = target.split("/", 1)
        return f"{collection}/{module}/{path}"

    return tuple(dataclasses.replace(r, targets=tuple(map(move, r.targets))) for r in rules)


def from_layer(rules: Iterable[Rule], first: int) -> tuple[Rule, ...]:
    """The same rules for a stack whose first layer has the number `first` in the keys."""
    return tuple(dataclasses.replace(r, first_layer=first) for r in rules)


def under(table: Table, prefix: str, module: str) -> Table:
    """The table of a model that is the submodule `module` of another, with `prefix` in its keys."""

    def prefixed(keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(prefix + key for key in keys)

    literal = re.escape(prefix)
    rules = (
        dataclasses.replace(
            r,
            keys=prefixed(r.keys),
            instead=tuple((prefixed(keys), transform) for keys, transform in r.instead),
        )
        for r in nested(table.rules, module)
    )
    return Table(
        tuple(rules),
        tuple(Ignore(f"{literal}(?:{i.pattern})", i.reason) for i in table.ignored),
        tuple(Tie(f"{literal}(?:{t.pattern})", prefix + t.key) for t in table.tied),
    )


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Parameters, or one layer of stacked ones, and the keys that make them.

    Attributes:
      targets: paths of the parameters.
      index: position on the parameters' first axis; None if they are not stacked.
      shapes: shapes of the parameters, or of their layer.
      keys: PyTorch keys.
      transform: how their tensors become the parameters.
      initial: see `Rule`.
      fresh: see `Rule`.
      instead: see `Rule`.
      is_other_form: whether these are such keys.
    """

    targets: tuple[str, ...]
    index: int | None
    shapes: tuple[Shape, ...]
    keys: tuple[str, ...]
    transform: Transform
    initial: InitialValue | None = None
    fresh: InitialValue | None = None
    instead: tuple[tuple[tuple[str, ...], Transform], ...] = ()
    is_other_form: bool = False

    @property
    def source_shapes(self) -> tuple[Pattern, ...]:
        """Shapes that the tensors of `keys` must have."""
        return self.transform.source_shapes(self.shapes)

    @property
    def written_shapes(self) -> tuple[Shape, ...]:
        """The same of tensors that an export writes, which leave no size open."""
        return tuple(tuple(n for n in shape if n is not None) for shape in self.source_shapes)

    def forms(self) -> Iterable["Assignment"]:
        """The same for each of the other forms that a file may have."""
        for keys, transform in self.instead:
            yield dataclasses.replace(self, keys=keys, transform=transform, is_other_form=True)


def assignments(table: Table, targets: Mapping[str, Shape]) -> tuple[Assignment, ...]:
    """Every parameter of a model with the keys that make it, in the order of `targets`.

    Args:
      table: the architecture's rules.
      targets: shape of each parameter by its path.

    Raises:
      KeyError: the table lacks a rule for a parameter (a fault of the table, not of a checkpoint).
    """
    rules = {target: r for r in table.rules for target in r.targets}
    found: list[Assignment] = []
    for target in targets:
        r = rules[target]
        if target != r.targets[0]:
            continue
        is_stacked = any(LAYER in key for key in r.keys)
        shapes = tuple(targets[t] for t in r.targets)
        for index in range(shapes[0][0]) if is_stacked else [None]:
            number = "" if index is None else str(r.first_layer + index)

            def numbered(keys: tuple[str, ...], number: str = number) -> tuple[str, ...]:
                return tuple(key.replace(LAYER, number) for key in keys)

            found.append(
                Assignment(
                    r.targets,
                    index,
                    tuple(shape[1:] for shape in shapes) if is_stacked else shapes,
                    numbered(r.keys),
                    r.transform,
                    r.initial,
                    r.fresh,
                    tuple((numbered(keys), transform) for keys, transform in r.instead),
                )
            )
    return tuple(found)
