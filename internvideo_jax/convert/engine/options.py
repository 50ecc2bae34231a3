"""Reading the constructor options of an upstream class so that none is overlooked."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from internvideo_jax.config import nearest_name

_REQUIRED = object()


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
                return source[name]
        if default is _REQUIRED:
            raise ValueError(
                f"expected option {name!r} for a model of kind {self.kind!r}, found only"
                f" {sorted(self.options)}; add it"
            )
        return default

    def size(self, name: str, default: Any = _REQUIRED) -> Any:
        """An option that counts something, of which there must be one."""
        value = self.take(name, default)
        if isinstance(value, str):
            raise ValueError(f"{name}: expected int, found {value!r}")
        if isinstance(value, int) and value < 1:
            raise ValueError(
                f"expected option {name!r} of kind {self.kind!r} to be at least 1, found {value}"
            )
        return value

    def unfold(self, name: str) -> None:
        """Puts the options that one option holds beside the others."""
        self.options = {**self.options, **self.take(name, {})}

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
    known: Container[str],
    problems: Sequence[str] = (),
) -> None:
    """Raises what there is to say, together with numbers of heads that nothing tells.

    Args:
      heads: by option, of released models of this width; None if there is none.
      width: token width.
      released: widths of released models.
      known: options that are given or stored.
      problems: what else is wrong.

    Raises:
      ValueError: there is anything to say.
    """
    found = list(problems)
    missing = [name for name, number in heads.items() if number is None and name not in known]
    if missing:
        found.append(
            f"expected a released width ({', '.join(map(str, released))}), whose numbers of heads"
            f" are known, found {width}, and tensors do not show them; pass"
            f" {' '.join(f'--option={name}=N' for name in missing)}"
        )
    if found:
        raise ValueError("\n".join(found))
