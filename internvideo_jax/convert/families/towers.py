"""Models of several towers, each of which has keys and options of a family of its own."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from internvideo_jax.convert.engine.family import Family, Shapes
from internvideo_jax.convert.engine.options import Options


class Place(NamedTuple):
    """Where a tower's keys and options are, and whose they are.

    Attributes:
      name: the option that holds its options as one, or `name.` before each of them.
      prefix: what precedes its canonical keys.
      family: whose keys and options they are.
      kind: which of the family's models it is.
      neutral: options without effect, besides the family's.
    """

    name: str
    prefix: str
    family: Family
    kind: str
    neutral: frozenset[str] = frozenset()


def options_of(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tower's options: those in the option `name` itself, and others called `name.*`.

    Raises:
      ValueError: the option `name` holds no options.
    """
    prefix = f"{name}."
    own = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    inner = values.get(name, {})
    if not isinstance(inner, Mapping):
        raise ValueError(f"{name}: expected options by name, found {inner!r}")
    return {**own, **inner}


def config_of(place: Place, options: Options, **fallback: Any) -> Any:
    """The config of a tower.

    Args:
      place: which tower.
      options: of the whole model.
      fallback: what the tower's class takes for granted here.

    Raises:
      ValueError: as `upstream.config_from_upstream`.
    """
    own = Options(
        f"{options.kind}, {place.name}",
        options_of(options.options, place.name),
        fallback | options_of(options.fallback, place.name),
    )
    options.take(place.name, {})
    for option in own.options:
        options.take(f"{place.name}.{option}", None)
    config = place.family.kinds[place.kind](own)
    own.finish(place.family.neutral | place.neutral)
    return config


def infer(
    places: Iterable[Place], shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the shapes of all towers show, and what is assumed of them; see `Family.infer`.

    Raises:
      KeyError: a tensor that a tower's sizes are read from is missing.
      ValueError: options that must be given, of all towers together.
    """
    shown: dict[str, Any] = {}
    assumed: dict[str, Any] = {}
    problems = []
    for name, prefix, family, kind, _ in places:
        own = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
        try:
            recorded = family.recorded(options_of(stored, name))
            found = family.infer(kind, own, options_of(given, name), recorded)
        except KeyError as error:
            raise KeyError(f"{prefix}{error.args[0]}") from None
        except ValueError as error:
            problems.append(f"{name}.*: {error}")
            continue
        for options, values in zip((shown, assumed), found, strict=True):
            options.update({f"{name}.{option}": value for option, value in values.items()})
    if problems:
        raise ValueError("\n".join(problems))
    return shown, assumed


def dotted(towers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Options of towers by their names, as `options_of` finds them."""
    return {f"{name}.{o}": value for name, own in towers.items() for o, value in own.items()}
