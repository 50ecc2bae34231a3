"""The page docs/config.md: every field of a run's config, from the docstrings that explain them.

`python -m internvideo_jax.launch.config_reference > docs/config.md` writes it anew.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

_HEAD = """\
# Every field of a config

Any of them is set on the command line, `--config.train.batch_size=8`; what has "fields of its own
or None" is left out with `=None`, as in `--config.stage.model.audio=None`. `internvideo-jax train
--config=FILE.py:NAME --print_config` prints all that a recipe holds, as options to paste. This page
is made of the docstrings in the code (`launch/config_reference.py`); a test keeps it complete.
"""
# "  name: text", as our docstrings list attributes.
_ATTRIBUTE = re.compile(r"(\w+): (.*)")


def config_reference() -> str:
    """The page, Markdown."""
    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.evaluation.retrieval.options import RetrievalData, RetrievalOptions
    from internvideo_jax.evaluation.zero_shot_options import (
        ChoiceData,
        ZeroShotData,
        ZeroShotOptions,
    )
    from internvideo_jax.training.config import TrainConfig
    from internvideo_jax.training.stages import STAGES

    parts: list[tuple[str, type]] = [("train", TrainConfig), ("data", DataConfig)]
    parts += [("stage", config) for config, _ in STAGES.values()]
    parts += [("retrieval", RetrievalOptions), ("eval_data", RetrievalData)]
    parts += [("zero_shot", ZeroShotOptions), ("multiple_choice", ZeroShotOptions)]
    parts += [("eval_data", ZeroShotData), ("eval_data", ChoiceData)]
    evaluated = {
        RetrievalData: "retrieval",
        ZeroShotData: "zero_shot",
        ChoiceData: "multiple_choice",
    }
    kinds = {config: kind for kind, (config, _) in STAGES.items()}
    places: dict[type, list[str]] = {}
    for name, cls in parts:
        for place, inner in _nested(name, cls):
            places.setdefault(inner, [])
            if place not in places[inner]:
                places[inner].append(place)
    sections = [_HEAD]
    for cls, where in places.items():
        title = ", ".join(f"`{place}`" for place in where)
        if cls is DataConfig:
            title += " and `eval_data`"
        if cls in kinds:
            title += f" of the kind `{kinds[cls]}`"
        if cls in evaluated:
            title += f" of `configs/eval/{evaluated[cls]}.py`"
        sections.append("\n".join([f"## {title}", "", *_table(cls)]) + "\n")
    return "\n".join(sections)


def documented(cls: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of those it derives from say of its fields."""
    texts: dict[str, str] = {}
    for base in cls.__mro__:
        for name, text in _attributes(base).items():
            texts.setdefault(name, text)
    return {f.name: texts.get(f.name, "") for f in dataclasses.fields(cls) if f.init}


def _nested(place: str, cls: type) -> Iterator[tuple[str, type]]:
    """A dataclass and those in its fields, with the dotted names of where they are."""
    yield place, cls
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        for inner in _dataclasses(hints[field.name]):
            many = "[...]" if typing.get_origin(hints[field.name]) is tuple else ""
            yield from _nested(f"{place}.{field.name}{many}", inner)


def _dataclasses(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield typing.cast(type, hint)
    for argument in typing.get_args(hint):
        yield from _dataclasses(argument)


def _table(cls: type) -> list[str]:
    hints = typing.get_type_hints(cls)
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    texts = documented(cls)
    for field in dataclasses.fields(cls):
        if field.init:
            cells = (
                f"`{field.name}`",
                _type_name(hints[field.name]),
                _default(field),
                texts[field.name],
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{option}`" for option in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return "fields of its own"
    if isinstance(hint, type) and not typing.get_args(hint):
        return "None" if hint is type(None) else hint.__name__
    if typing.get_origin(hint) is tuple:
        inner = [_type_name(item) for item in typing.get_args(hint) if item is not Ellipsis]
        return f"tuple of {', '.join(inner)}"
    names = (_type_name(option) for option in typing.get_args(hint))
    return " or ".join(dict.fromkeys(names)) or "any"


def _default(field: "dataclasses.Field[Any]") -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "set by the recipe"
    return "see below" if dataclasses.is_dataclass(value) else f"`{value!r}`"


def _attributes(cls: type) -> dict[str, str]:
    """The section "Attributes:" of a class's own docstring."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    _, _, section = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if not line.startswith("  "):
            break
        indent = len(line) - len(line.lstrip())
        match = _ATTRIBUTE.fullmatch(line.strip()) if indent == 2 else None
        if match:
            name, found[match[1]] = match[1], match[2]
        elif name:
            found[name] += f" {line.strip()}"
    return found


if __name__ == "__main__":
    print(config_reference(), end="")
