"""Lists of clips with labels for zero-shot classification, where classes are known by name alone.

Beside the lists of `lists` and folders of classes, these forms are read, by their content:

  InternVideo2   JSON list of {"video": path, "caption": name of the class}
  Charades       CSV with the columns id and actions, "c092 11.90 21.20;c147 0.00 12.60": clips with
                 any number of classes, whose names a file with lines of "c092 name" says
"""

import csv
import dataclasses
import os
from collections.abc import Sequence

from internvideo_jax.class_names import read_class_names
from internvideo_jax.config import nearest_name
from internvideo_jax.data.annotations.entries import EntryError, is_name, quote
from internvideo_jax.data.annotations.lines import read_lines
from internvideo_jax.data.annotations.records import AnnotationError, ClipRecord, Problem
from internvideo_jax.data.annotations.retrieval_clips import find_files
from internvideo_jax.data.config import ClipSet
from internvideo_jax.data.decode.paths import join_inside
from internvideo_jax.data.sources.clips import RecordSource, open_source
from internvideo_jax.files import check_regular

# Columns of Charades' lists that are read.
_ACTION_COLUMNS = {"id", "actions"}
_REMEDY = "set --config.eval_data.classes=FILE, or --classes=FILE"


@dataclasses.dataclass(frozen=True)
class ClassifiedClips:
    """The clips of a list, and their classes.

    Attributes:
      records: in the order of the list; labels are numbers or names of the classes, or tuples of
        them.
      classes: their names, in the order of the numbers.
      missing: ids of clips that are not on disk.
    """

    records: tuple[ClipRecord, ...]
    classes: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def is_multi_label(self) -> bool:
        """Whether clips have any number of classes."""
        return any(isinstance(record.label, tuple) for record in self.records)


def read_classified(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
) -> ClassifiedClips:
    """Reads clips with labels.

    Args:
      path: the list, or a folder that holds a folder of videos for each class.
      root: folder of the videos; by default the list's own.
      classes: names of the classes in the order of the labels' numbers, or a file of them that
        `class_names.read_class_names` reads; None takes the names that the labels are, in
        alphabetical order.

    Raises:
      AnnotationError: entries are wrong; lists them.
      ValueError: clips without labels, labels that are no classes, or numbers without names.
      OSError: no such file.
    """
    path = os.fspath(path)
    names: tuple[str, ...] | None = None
    if isinstance(classes, str | os.PathLike):
        names = read_class_names(classes)
        if not names:
            raise ValueError(f"{classes}: expected the names of classes, found an empty file")
    elif classes is not None:
        names = tuple(classes)
    if not os.path.isdir(path):
        check_regular(path)
        if _has_actions(path):
            return _read_actions(path, os.path.dirname(path) if root is None else root, names)
    named = ClipSet(annotations=path, root=None if root is None else os.fspath(root))
    source = open_source(named)
    assert isinstance(source, RecordSource)
    records = tuple(map(_labelled, source.records))
    _check_labelled(path, records)
    labels = [label for record in records for label in _labels(record)]
    if names is None:
        if not all(map(is_name, labels)):
            raise ValueError(
                f"{path}: expected labels that are names of classes, or the names, found numbers"
                f" alone; {_REMEDY}"
            )
        names = tuple(sorted(map(str, dict.fromkeys(labels))))
    _check_labels(path, labels, names)
    missing = tuple(record.id for record in records if not os.path.exists(record.path))
    return ClassifiedClips(records, names, missing)


def _labels(record: ClipRecord) -> tuple[int | str | None, ...]:
    return record.label if isinstance(record.label, tuple) else (record.label,)


def _labelled(record: ClipRecord) -> ClipRecord:
    """The record with the name of its class as label where that is its only caption."""
    if record.label is None and len(record.captions) == 1:
        return dataclasses.replace(record, label=record.captions[0].strip(), captions=())
    return record


def _check_labelled(path: str, records: Sequence[ClipRecord]) -> None:
    without = [record for record in records if record.label in (None, "")]
    if without:
        raise ValueError(
            f"{path}: expected clips with a label, or with the name of their class as their one"
            f" caption, found {len(without)} of {len(records)} without, the first {without[0].id}"
        )


def _check_labels(path: str, labels: Sequence[int | str | None], names: Sequence[str]) -> None:
    known = set(names)
    for label in dict.fromkeys(labels):
        if isinstance(label, int) and label >= len(names):
            raise ValueError(
                f"{path}: expected labels below {len(names)}, of which there are names, found"
                f" {label}; correct the file of classes"
            )
        if isinstance(label, str) and label not in known:
            raise ValueError(
                f"{path}: expected labels that are names of the {len(names)} classes, found"
                f" {label!r}{nearest_name(label, names)}; correct the file of classes"
            )


def _has_actions(path: str) -> bool:
    """Whether a file is a CSV whose first line names the columns of Charades."""
    if not path.lower().endswith((".csv", ".txt")):
        return False
    _, first = next(read_lines(path), (0, ""))
    return isinstance(first, str) and _ACTION_COLUMNS.issubset(
        name.strip(' "') for name in first.split(",")
    )


def _read_actions(
    path: str, root: str | os.PathLike[str], lines: Sequence[str] | None
) -> ClassifiedClips:
    """Charades: ids of videos, and codes of the actions in each.

    Args:
      path: the list.
      root: folder of the videos.
      lines: code and name of each class.
    """
    if lines is None:
        raise ValueError(
            f"{path}: expected the names of the actions, of which it has codes, found none;"
            f" {_REMEDY} (Charades_v1_classes.txt)"
        )
    codes: dict[str, int] = {}
    names = []
    for number, line in enumerate(lines):
        code, _, name = line.partition(" ")
        codes[code] = number
        names.append(name.strip() or code)
    labels_of: dict[str, tuple[int, ...]] = {}
    problems = []
    folder = os.path.abspath(root)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                try:
                    labels_of[_video(row, folder)] = _numbers(row["actions"], codes)
                except EntryError as error:
                    problems.append(Problem(rows.line_num, error.expected, error.found))
        except (csv.Error, UnicodeDecodeError) as error:
            problems.append(Problem(rows.line_num, "lines of CSV in UTF-8", str(error)))
    files = find_files(labels_of, folder)
    for video, found in files.items():
        if len(found) > 1:
            problems.append(Problem(None, f"one file for the video {video}", " and ".join(found)))
    if not labels_of and not problems:
        problems.append(Problem(None, "at least one clip", "none"))
    if problems:
        raise AnnotationError(path, problems, len(problems), len(problems) + len(labels_of))
    records = tuple(
        ClipRecord(
            video, files[video][0] if files[video] else os.path.join(folder, video), label=labels
        )
        for video, labels in labels_of.items()
    )
    missing = tuple(video for video, found in files.items() if not found)
    return ClassifiedClips(records, tuple(names), missing)


def _video(row: "dict[str, str | None]", folder: str) -> str:
    video = (row["id"] or "").strip()
    if not video or "\0" in video or join_inside(folder, video) is None:
        raise EntryError(f"the id of a video inside {folder}", quote(video))
    return video


def _numbers(actions: str | None, codes: "dict[str, int]") -> tuple[int, ...]:
    """The classes of "code start end;code start end"; each once, ascending."""
    numbers: set[int] = set()
    for action in (actions or "").split(";"):
        code, _, _ = action.strip().partition(" ")
        if code and code not in codes:
            expected = f"codes of the {len(codes)} classes, such as {next(iter(codes))}"
            raise EntryError(expected, quote(code))
        if code:
            numbers.add(codes[code])
    return tuple(sorted(numbers))
