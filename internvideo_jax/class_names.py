"""Names of a classifier's classes, as lists and from the files in which they are usually kept."""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from internvideo_jax.files import parse_json, read_bytes

_log = logging.getLogger(__name__)

# Names of a million classes.
_MAX_BYTES = 64 * 2**20

# The number of a line's class, before its name or behind it.
_NUMBERS = (re.compile(r"^([0-9]{1,9})(?: ?[,;:] ?|\s)"), re.compile(r"[,;\t] ?([0-9]{1,9})$"))


def read_class_names(
    path: str | os.PathLike[str], num_classes: int | None = None
) -> tuple[str, ...]:
    """Reads class names in the order of the labels, which count from 0.

    Args:
      path: a UTF-8 file of any origin. `.json`: a list of names, `{name: number}`,
        `{number: name}`, or a Hugging Face config that holds one of these as `id2label` or
        `label2id`. Any other: one name per line, perhaps with its number before it ("1 Archery",
        "0,archery") or behind it ("archery,0"), from 0 or from 1, and a heading ("id,name").
      num_classes: how many there must be; None for any number.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another form, an empty name, one that occurs twice, numbers that are not 0, 1,
        2, ..., or another number of names; says where.
    """
    try:
        content = read_bytes(path, _MAX_BYTES)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: expected a file with the names of the classes, one on each line or as .json,"
            " found no such file; correct its path"
        ) from None
    suffix = PurePath(path).suffix.lower()
    if suffix == ".json":
        names = names_in_json(parse_json(content, str(path)), str(path))
    elif suffix in (".yaml", ".yml"):
        raise ValueError(
            f"{path}: expected the names of the classes one on each line, or as .json, found a name"
            " of YAML; write one of these"
        )
    else:
        names = _names_in_lines(content, str(path))
    if num_classes is not None:
        _check_count(names, num_classes, str(path))
    return names


def given_class_names(names: Any, where: str = "classes") -> tuple[str, ...]:
    """Class names that a program hands over, each once, without blanks around them.

    Args:
      names: a list of them, or something else that goes through them.
      where: what to call them in errors.

    Raises:
      TypeError: no list of texts; a text alone is none, as it might be the path of a file.
      ValueError: no names, an empty one, or one that occurs twice; says which.
    """
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise TypeError(
            f"{where}: expected a list of names, found {type(names).__name__}; those in a file"
            " reads class_names.read_class_names"
        )
    listed = list(names)
    for number, name in enumerate(listed):
        if not isinstance(name, str):
            raise TypeError(f"{where}[{number}]: expected a name, found {type(name).__name__}")
    if not listed:
        raise ValueError(f"{where}: expected at least one name, found none")
    return _checked((f"{where}[{number}]", name) for number, name in enumerate(listed))


def check_order(names: Sequence[str], own: Sequence[str], where: str) -> None:
    """Compares other names of a model's classes with the model's own.

    Other words, as a translation has, are taken and warned of once; a name of the model's at the
    number of another class is an error, since it would be said of what it does not mean.

    Args:
      names: what its classes are to be called.
      own: the model's, in the order of its logits.
      where: what to call the names in errors, as the path of their file.

    Raises:
      ValueError: another number of names, or their order is not the model's.
    """
    _check_count(names, len(own), where)
    numbers = {name: number for number, name in enumerate(own)}
    for number, (name, expected) in enumerate(zip(names, own, strict=True)):
        if numbers.get(name, number) != number:
            raise ValueError(
                f"{where}: expected the classes in the model's order, {expected!r} as number"
                f" {number}, found {name!r}, which is its number {numbers[name]}; leave the file"
                " out, the model names its classes"
            )
    differing = [pair for pair in zip(own, names, strict=True) if pair[0] != pair[1]]
    if differing:
        _log.warning(
            "%s: %d of %d names are not the model's own, the first %r for %r",
            where,
            len(differing),
            len(own),
            *reversed(differing[0]),
        )


def names_in_json(value: Any, where: str) -> tuple[str, ...]:
    """Class names in a parsed JSON file; its forms and errors are those of `read_class_names`."""
    if isinstance(value, dict):
        value = value.get("id2label") or value.get("label2id") or value
    if isinstance(value, dict):
        numbered = _numbered(value.items()) or _numbered((n, name) for name, n in value.items())
    else:
        numbered = _numbered(enumerate(value)) if isinstance(value, list) else None
    if not numbered:
        raise ValueError(
            f"{where}: expected a list of class names, {{name: number}}, {{number: name}} or a"
            " config with id2label, found another form"
        )
    numbers = sorted(number for number, _ in numbered)
    if numbers != list(range(len(numbers))):
        raise ValueError(
            f"{where}: expected each number from 0 to {len(numbers) - 1} once for {len(numbers)}"
            f" classes, found {numbers[0]} to {numbers[-1]}"
        )
    # Some lists have names in quotation marks of their own: {"\"riding a bike\"": 200}.
    return _checked((f"{where}: class {n}", name.strip('"')) for n, name in sorted(numbered))


def _check_count(names: Sequence[str], num_classes: int, where: str) -> None:
    if len(names) != num_classes:
        raise ValueError(
            f"{where}: expected names of the model's {num_classes} classes, found {len(names)}"
        )


def _numbered(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[int, str]] | None:
    """Pairs of a number, in digits or as one, and a name; None if some are not."""
    found = []
    for number, name in pairs:
        is_number = type(number) is int or (
            isinstance(number, str) and number.isascii() and number.isdecimal() and len(number) < 10
        )
        if not is_number or not isinstance(name, str):
            return None
        found.append((int(number), name))
    return found


def _names_in_lines(content: bytes, where: str) -> tuple[str, ...]:
    try:
        lines = content.decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected UTF-8 text, found {error.reason}") from None
    numbered = _numbered_lines(lines)
    if numbered is None:
        return _checked((f"{where}:{i}", line) for i, line in enumerate(lines, start=1))
    first = min(numbered)
    _log.info(
        "%s: its lines are numbered from %d to %d, which is no part of the names",
        where,
        first,
        max(numbered),
    )
    return _checked((f"{where}: class {n}", name) for n, name in sorted(numbered.items()))


def _numbered_lines(lines: Sequence[str]) -> dict[int, str] | None:
    """Names by the numbers that their lines give them, if these are 0, 1, ... or 1, 2, ..."""
    lines = [line.strip() for line in lines]
    for pattern in _NUMBERS:
        # Tables may name their columns first.
        has_heading = lines and not pattern.search(lines[0]) and re.search("[,;\t]", lines[0])
        rows = lines[1:] if has_heading else lines
        matches = [match for row in rows if (match := pattern.search(row))]
        names = {int(m[1]): pattern.sub("", m.string).strip().strip('"') for m in matches}
        first = min(names, default=0)
        if len(names) == len(rows) > 1 and first < 2 and max(names) == first + len(rows) - 1:
            return names
    return None


def _checked(names: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The names, which come with their places."""
    places: dict[str, str] = {}
    for place, name in names:
        name = name.strip()
        if not name:
            raise ValueError(f"{place}: expected the name of a class, found none")
        if name in places:
            raise ValueError(
                f"{place}: expected another name than {name!r}, which {places[name]} has"
            )
        places[name] = place
    return tuple(places)
