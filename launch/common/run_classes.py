"""The classes of a run: their names and number, as files of them or the clips' labels tell."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.class_counts import Label
    from internvideo_jax.data.config import DataConfig, MixtureMember
    from internvideo_jax.data.sources.clips import RecordSource

_log = logging.getLogger(__name__)

# Classes and their clips that are said one by one.
_MAX_SAID = 20


def complete_classes(stage: dict[str, Any], data: dict[str, Any], *, has_clips: bool) -> None:
    """Sets `stage.classes`, `stage.model.num_classes` and `data.num_classes` where they are unset.

    Says which classes there are, with their clips, and warns of what is hardly meant.

    Args:
      stage: fields of a stage that classifies.
      data: fields of a `DataConfig`.
      has_clips: whether it names any.

    Raises:
      ValueError: the classes cannot be told.
    """
    from internvideo_jax.class_names import read_class_names

    model = stage["model"]
    names: tuple[str, ...] = tuple(stage.get("classes") or ())
    if isinstance(data.get("classes"), str):
        in_file = read_class_names(data["classes"])
        if names and names != in_file:
            raise ValueError(
                f"stage.classes: expected the names in {data['classes']}, found others; unset one"
                " of stage.classes and data.classes"
            )
        names = in_file
    count = len(names) or model.get("num_classes")
    if names and has_clips:
        _say_clips_of_classes(data, names)
    elif has_clips:
        names, found = _classes_of_clips(data, count)
        count = count or found
    if model.get("num_classes") is None:
        model["num_classes"] = count
    if data.get("num_classes") is None:
        data["num_classes"] = model["num_classes"]
    if names:
        stage["classes"] = names


def _say_clips_of_classes(data: dict[str, Any], names: tuple[str, ...]) -> None:
    """Says how many clips each of the classes has, where clips can be counted."""
    from internvideo_jax.data.annotations.class_counts import count_labels

    config = _data_config(data, num_classes=len(names), classes=names)
    labels: Counter[Label] = Counter()
    for _, source in _lists(config):
        labels += count_labels(source.records)
    # A label may be the number of a class, too.
    known: Counter[Label] = Counter()
    for label, number in labels.items():
        known[names[label] if isinstance(label, int) else label] += number
    if known:
        _say_classes(config.name, names, known)


def _classes_of_clips(data: dict[str, Any], count: int | None) -> tuple[tuple[str, ...], int]:
    """Names and number of the classes that labels name; numbers have no names.

    Args:
      data: fields of a `DataConfig` with clips.
      count: how many classes there must be; None for any number.
    """
    from internvideo_jax.data.annotations.class_counts import count_labels

    if count is not None and not os.path.isdir(data.get("annotations") or ""):
        # Labels of a list are numbers unless their names are given.
        return (), count
    from_labels = _data_config(data, num_classes=None, multi_label=False)
    where = from_labels.name
    if any(member.annotations is None for member in from_labels.members):
        raise ValueError(
            f"{where}: expected a list, whose classes can be counted; name them with"
            " --config.data.classes=FILE, or set --config.stage.model.num_classes"
        )
    lists = list(_lists(from_labels))
    labels: Counter[Label] = Counter()
    for _, source in lists:
        labels += count_labels(source.records)
    names = tuple(sorted(label for label in labels if isinstance(label, str)))
    numbers = [label for label in labels if isinstance(label, int)]
    if names and numbers:
        raise ValueError(
            f"{where}: expected labels that are all names or all numbers, found {names[0]!r} and"
            f" {numbers[0]}; write them alike"
        )
    found = len(names) or max(numbers, default=-1) + 1
    if not found:
        raise ValueError(
            f"{where}: expected a label for every clip, found none at all; add a column (or key)"
            " label"
        )
    if labels[None]:
        # Refused with file and line.
        list(_lists(_data_config(data, num_classes=found, classes=names or None)))
    if count is not None and found != count:
        raise ValueError(
            f"{where}: expected {count} classes, as stage.model.num_classes says, found {found};"
            " for classes of your own take --config=configs/stage1/finetune.py:SIZE,custom and"
            " leave num_classes out, which is counted from the clips (or from data.classes)"
        )
    if len(labels) == 1:
        (only,) = labels
        raise ValueError(
            f"{where}: expected clips of at least two classes, found {only!r} alone; add clips of"
            " another, if only of what is not it"
        )
    _say_classes(where, names or range(found), labels)
    for member, source in lists:
        _warn_of_level(member, source)
    return names, found


def _data_config(data: dict[str, Any], **fields: Any) -> "DataConfig":
    from internvideo_jax.config import from_dict
    from internvideo_jax.data.config import DataConfig

    return from_dict(DataConfig, data | fields, "config.data")


def _lists(config: "DataConfig") -> "Iterator[tuple[MixtureMember, RecordSource]]":
    """The sets of clips that are lists or folders, opened; others do not tell their labels."""
    from internvideo_jax.data.sources.clips import RecordSource, open_source

    classes = config.class_names()
    for member in config.members:
        if member.annotations is not None:
            source = open_source(member, num_classes=config.num_classes, classes=classes)
            assert isinstance(source, RecordSource)
            yield member, source


def _warn_of_level(member: "MixtureMember", source: "RecordSource") -> None:
    """Warns of a folder of classes that seems to lie above (or below) what is meant."""
    from internvideo_jax.data.annotations.folders import level_warnings

    folder = member.annotations
    if folder is not None and os.path.isdir(folder):
        for warning in level_warnings(folder, [record.path for record in source.records]):
            _log.warning("%s", warning)


def _say_classes(where: str, classes: Sequence[Any], labels: "Counter[Label]") -> None:
    from internvideo_jax.data.annotations.class_counts import class_warnings, named

    said = ", ".join(f"{name} ({labels[name]})" for name in classes[:_MAX_SAID])
    more = f", and {len(classes) - _MAX_SAID} more" if len(classes) > _MAX_SAID else ""
    _log.info("%d classes of %s with their clips: %s%s", len(classes), where, said, more)
    if empty := [name for name in classes if not labels[name]]:
        _log.warning("no clip of %s has the label %s", where, named(empty))
    for warning in class_warnings(labels):
        _log.warning("%s: %s", where, warning)
