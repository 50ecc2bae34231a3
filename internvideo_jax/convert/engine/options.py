"""Reading the constructor options of an upstream class so that none is overlooked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from internvideo_jax.config import nearest_name

_REQUIRED = object()

# By the type of a default, those of values.
_TYPES: Mapping[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (float, int),
    str: (str,),
}
_MAX_SIZE = 2**31 - 1
# What float32 holds.
_MAX_NUMBER = 3e38


class Options:
    """Constructor options, each of which must be taken or be neutral."""

    def __init__(
        self, kind: str, options: Mapping[str, Any], fallback: Mapping[str, Any] | None = None
    ) -> None:
        self.kind = kind
        self.options = options
        self.fallback = fallback or {}
        self._known: dict[str, None] = {}

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of an option, else its default."""
        self._known[name] = None
        for source in (self.options, self.fallback):
            if name in source:
                return self._checked(name, source[name], default)
        if default is _REQUIRED:
            raise ValueError(
                f"expected option {name!r} for a model of kind {self.kind!r}, found only"
                f" {sorted(self.options)}; add it"
            )
        return default

    def _checked(self, name: str, value: Any, default: Any) -> Any:
        """The value, if it is a number where the default is one, and so on."""
        allowed = _TYPES.get(type(default))
        if allowed is not None and type(value) not in allowed:
            raise ValueError(
                f"{name}: expected {type(default).__name__}, found {value!r}; pass"
                f" --option={name}=VALUE"
            )
        is_number = isinstance(value, int | float)
        if is_number and not -_MAX_NUMBER <= value <= _MAX_NUMBER:
            raise ValueError(f"{name}: expected a number up to {_MAX_NUMBER:g}, found another")
        return value

    def size(self, name: str, default: Any = _REQUIRED) -> Any:
        """An option that counts something, of which there must be one."""
        value = self.take(name, default)
        if type(value) is not int:
            raise ValueError(f"{name}: expected int, found {value!r}")
        if not 1 <= value <= _MAX_SIZE:
            raise ValueError(
                f"expected option {name!r} of kind {self.kind!r} to be 1 to {_MAX_SIZE:,}, found"
                f" {value}"
            )
        return value

    def unfold(self, name: str) -> None:
        """Puts the options that one option holds beside the others."""
        inner = self.take(name, {})
        if not isinstance(inner, Mapping):
            raise ValueError(f"{name}: expected options by name, found {type(inner).__name__}")
        self.options = {**self.options, **inner}

    def require(self, name: str, *allowed: Any) -> None:
        """Refuses values of an option that this project does not implement."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise ValueError(
                f"expected option {name!r} of kind {self.kind!r} to be"
                f" {' or '.join(map(repr, allowed))}, found {value!r}, which is not supported"
            )

    def finish(self, neutral: frozenset[str]) -> None:
        """Refuses options that were not taken and are not neutral."""
        unknown = sorted(self.options.keys() - self._known.keys() - neutral)
        if unknown:
            raise ValueError(
                f"unknown options of a model of kind {self.kind!r}: {', '.join(unknown)}"
                f"{nearest_name(unknown[0], self._known)} (known: {', '.join(self._known)})"
            )


def expect_heads(
    heads: Mapping[str, int | None],
    width: int,
    released: Iterable[int],
    known: Mapping[str, Any],
    problems: Sequence[str] = (),
) -> None:
    """Raises what there is to say, together with numbers of heads that nothing tells.

    Args:
      heads: by option, of released models of this width; None if there is none.
      width: token width.
      released: widths of released models.
      known: options that are given or stored; those of heads have to divide the width.
      problems: what else is wrong.

    Raises:
      ValueError: there is anything to say.
    """
    found = list(problems)
    for name in heads.keys() & known.keys():
        number = known[name]
        if type(number) is not int or number < 1 or width % number:
            found.append(
                f"{name}: expected int that divides the width {width}, found {number!r}; pass"
                f" --option={name}=N"
            )
    missing = [name for name, number in heads.items() if number is None and name not in known]
    if missing:
        found.append(
            f"expected a released width ({', '.join(map(str, released))}), whose numbers of heads"
            f" are known, found {width}, and tensors do not show them; pass"
            f" {' '.join(f'--option={name}=N' for name in missing)}"
        )
    if found:
        raise ValueError("\n".join(found))
