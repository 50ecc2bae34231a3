"""Names of classes in the files that lie beside a checkpoint."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from internvideo_jax.class_names import read_class_names

_CONFIG = "config.json"
_LABELS = re.compile(
    r"(.*[_-])?(labels?|label_?map|id2label|label2id|classes|class_?names)\.(json|txt)", re.I
)
# What Hugging Face's configs have where nobody has named the classes.
_UNNAMED = re.compile(r"LABEL_\d+")


class Labels(NamedTuple):
    """Names of the classes, if any are known, and lines on where they are from."""

    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def label_files(names: Iterable[str]) -> list[str]:
    """Of the names of a folder's files, those that may hold names of classes."""
    found = (name for name in names if "/" not in name)
    return sorted(name for name in found if name == _CONFIG or _LABELS.fullmatch(name))


def labels_beside(folders: Sequence[Path], num_classes: int) -> Labels:
    """Names of as many classes in the label files of folders.

    Files of another number of names are passed over, and so are all if they contradict each other.
    """
    notes = []
    found: dict[tuple[str, ...], Path] = {}
    for folder in dict.fromkeys(folders):
        for name in label_files(path.name for path in folder.iterdir() if path.is_file()):
            try:
                names = read_class_names(folder / name)
            except ValueError as error:
                # Most configs are no list of classes, and need not be.
                notes += [f"no class names: {error}"] * (name != _CONFIG)
                continue
            if all(map(_UNNAMED.fullmatch, names)):
                continue
            if len(names) == num_classes:
                found.setdefault(names, folder / name)
            elif name != _CONFIG:
                notes.append(f"{name} names {len(names)} classes, the model has {num_classes}")
    if len(found) > 1:
        files = ", ".join(path.name for path in found.values())
        return Labels(None, (*notes, f"{files} name the classes differently: none is taken"))
    for names, path in found.items():
        return Labels(names, (f"names of the {num_classes} classes from {path.name}",))
    return Labels(None, tuple(notes))
