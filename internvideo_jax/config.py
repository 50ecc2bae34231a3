"""Frozen dataclasses from plain mappings and back: where ConfigDicts and JSON files end."""

import dataclasses
import difflib
import functools
import numbers
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field may hold, both ends included: `Annotated[int, Range(1, 9)]`.

    NaN lies in no range.
    """

    low: float
    high: float


# Ranges far above every model there is and far below what no machine can hold.
Width = Annotated[int, Range(1, 2**16)]
Size = Annotated[int, Range(1, 2**20)]
Side = Annotated[int, Range(1, 2**14)]
Frames = Annotated[int, Range(1, 2**16)]
Few = Annotated[int, Range(1, 2**12)]
Blocks = Annotated[int, Range(0, 2**12)]
Rate = Annotated[float, Range(0.0, 0.99)]
Factor = Annotated[float, Range(-1e9, 1e9)]
PositiveFactor = Annotated[float, Range(1e-9, 1e9)]
Epsilon = Annotated[float, Range(0.0, 1.0)]


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


class CheckedConfig:
    """Base of dataclasses whose fields hold what their annotations say, whoever makes them.

    Values become those of `from_dict`: lists tuples, ints floats where the annotation says so.

    Raises:
      ValueError: a field of another type or out of its range.
    """

    def __post_init__(self) -> None:
        cls = type(self)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, where = getattr(self, field.name), f"{cls.__name__}.{field.name}"
            # The way around being frozen that dataclasses themselves take.
            object.__setattr__(self, field.name, _convert(_hints(cls)[field.name], value, where))


def check_counts(**counts: Any) -> None:
    """Looks at arguments that count something, by name; None stands for a default.

    Raises:
      ValueError: one is not a whole number of at least 1.
    """
    for name, count in counts.items():
        is_whole = isinstance(count, numbers.Integral) and not isinstance(count, bool)
        if count is not None and not (is_whole and count >= 1):
            raise ValueError(
                f"{name}: expected a whole number of at least 1, found {_short(count)}"
            )


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The ending of an error message that suggests a name: `; did you mean 'x'?`, or nothing.

    Capitals do not count. Names that begin with what was found come before others, and the first
    three are suggested.
    """
    sought, folded = name.casefold(), {other.casefold(): other for other in names}
    longer = [other for other in folded if len(sought) > 2 and other.startswith(sought)]
    matches = longer[:3] or difflib.get_close_matches(sought, folded, n=1)
    suggested = " or ".join(repr(folded[match]) for match in matches)
    return f"; did you mean {suggested}?" if matches else ""


def nearest_fields(name: str, names: Iterable[str]) -> list[str]:
    """The dotted names of fields that a wrong one may mean, the likeliest first; at most three.

    A field may be sought in the wrong part, so that the last parts of names count first: how alike
    they are, an abbreviation by its initials as much as the same word (`lr`, `learning_rate`).
    """
    likeness = {
        other: (_likeness(_last(name), _last(other)), _ratio(name, other)) for other in names
    }
    best = max((leaf for leaf, _ in likeness.values()), default=0.0)
    likely = [other for other, (leaf, _) in likeness.items() if leaf >= max(0.6, best - 0.2)]
    return sorted(likely, key=likeness.__getitem__, reverse=True)[:3]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _likeness(one: str, other: str) -> float:
    if one in (other, _initials(other)) or _initials(one) == other:
        return 1.0
    return _ratio(one, other)


def _initials(name: str) -> str:
    words = [word for word in name.split("_") if word]
    return "".join(word[0] for word in words) if len(words) > 1 else name


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def from_dict(cls: type[T], mapping: Mapping[str, Any], where: str = "config") -> T:
    """Builds a dataclass, nested ones included, and checks names and types on the way.

    Args:
      cls: dataclass whose annotations are made of bool, int, float, str, None, Literal, unions,
        tuples and other dataclasses; numbers may be `Annotated` with a `Range`.
      mapping: field names to values (a dict or an ml_collections.ConfigDict). Lists serve as
        tuples, whole floats never as ints, ints do as floats.
      where: how error messages name the mapping, e.g. "model.json: config".

    Raises:
      ValueError: an unknown field, a missing one without default, a value of another type or out
        of its range, or whatever the dataclass's own `__post_init__` objects to.
    """
    if not isinstance(mapping, Mapping) and not _is_config_dict(mapping):
        raise ValueError(f"{where}: expected the fields of {cls.__name__}, found {_short(mapping)}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in mapping:
        if name not in fields:
            raise ValueError(
                f"{where}: unknown field {_short(name)} of {cls.__name__}"
                f"{nearest_name(str(name), fields)} (fields: {', '.join(fields)})"
            )
    missing = [n for n, f in fields.items() if n not in mapping and not _has_default(f)]
    if missing:
        raise ValueError(
            f"{where}: {cls.__name__} needs {', '.join(map(repr, missing))}, found only"
            f" {', '.join(map(repr, mapping)) or 'nothing'}"
        )
    values = {n: _convert(_hints(cls)[n], mapping[n], f"{where}.{n}") for n in mapping}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def to_dict(obj: Any) -> dict[str, Any]:
    """The inverse of `from_dict`, ready for JSON: nested dicts, tuples as lists."""
    if not dataclasses.is_dataclass(obj) or isinstance(obj, type):
        raise TypeError(f"expected an instance of a dataclass, found {obj!r}")
    return {f.name: _plain(getattr(obj, f.name)) for f in dataclasses.fields(obj) if f.init}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


_hints: Callable[[Any], dict[str, Any]] = functools.cache(
    functools.partial(typing.get_type_hints, include_extras=True)
)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return not (field.default is field.default_factory is dataclasses.MISSING)


def _is_config_dict(value: object) -> bool:
    """A ConfigDict is no Mapping, and importing its class only to ask would be slow."""
    return hasattr(value, "keys") and hasattr(value, "__getitem__")


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        return from_dict(typing.cast(type, hint), value, where)
    if origin is Annotated:
        kind, limits = get_args(hint)
        value = _convert(kind, value, where)
        if not limits.low <= value <= limits.high:
            raise ValueError(f"{where}: expected {_describe(hint)}, found {_short(value)}")
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, where)
    if origin is Literal:
        options = get_args(hint)
        # `True == 1` and `1.0 == 1`, hence the types.
        if any(value == option and type(value) is type(option) for option in options):
            return value
        suggestion = nearest_name(value, options) if isinstance(value, str) else ""
        raise ValueError(
            f"{where}: expected one of {', '.join(map(repr, options))}, found"
            f" {_short(value)}{suggestion}"
        )
    if origin is tuple:
        return _convert_tuple(get_args(hint), value, where)
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{where}: expected float, found {_kind(value)}") from None
    # bool is a subclass of int, and `num_frames=True` an error.
    if type(value) is (type(None) if hint is None else hint):
        return value
    raise ValueError(f"{where}: expected {_describe(hint)}, found {_kind(value)}")


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    errors = []
    for option in options:
        try:
            return _convert(option, value, where)
        except ValueError as error:
            errors.append(error)
    meant = _dataclass_meant(options, value)
    detailed = [
        error
        for option, error in zip(options, errors, strict=True)
        if option is meant or get_origin(option) in (Literal, tuple, Annotated)
    ]
    if value is not None and len(detailed) == 1:
        raise detailed[0]
    expected = " or ".join(map(_describe, options))
    raise ValueError(f"{where}: expected {expected}, found {_kind(value)}")


def _dataclass_meant(options: tuple[Any, ...], value: Any) -> Any:
    """The dataclass whose fields a value has; of one alone, whatever the value. Else None."""
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    if len(classes) < 2:
        return classes[0] if classes else None
    if not isinstance(value, Mapping) and not _is_config_dict(value):
        return None
    names = set(value.keys())
    return max(classes, key=lambda cls: len(names & {f.name for f in dataclasses.fields(cls)}))


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise ValueError(f"{where}: expected a list, found {_kind(value)}")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ValueError(
            f"{where}: expected {len(items)} values, found {len(value)}: {_short(value)}"
        )
    return tuple(
        _convert(item, v, f"{where}[{i}]")
        for i, (item, v) in enumerate(zip(items, value, strict=True))
    )


def _describe(hint: Any) -> str:
    if hint in (None, type(None)):
        return "None"
    if get_origin(hint) is Annotated:
        kind, limits = get_args(hint)
        return f"{_describe(kind)} from {limits.low:,} to {limits.high:,}"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _kind(value: object) -> str:
    return "None" if value is None else f"{type(value).__name__} {_short(value)}"


def _short(value: object) -> str:
    """A value as text, without the middle of a long one: it may come from any file."""
    return _SHORT.repr(value)
