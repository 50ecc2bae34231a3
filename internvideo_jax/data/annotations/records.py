"""Annotation files: which clips a data set has, and what is known of each."""

import dataclasses
import math
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from internvideo_jax.data.annotations.formats import (
    FORMATS,
    FRAME_PATTERN,
    Entry,
    Format,
    check_frame_pattern,
    read_entries,
    tell_format,
)
from internvideo_jax.data.annotations.lines import EntryError, quote
from internvideo_jax.data.decode.paths import join_inside

# A wrong format makes every line of a long file a bad one.
MAX_KEPT_PROBLEMS = 1000
MAX_SHOWN_PROBLEMS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class ClipRecord:
    """One clip of a data set.

    Attributes:
      id: unique in its data set.
      path: absolute: a video file, an image, or a folder of images.
      start: seconds after the file's start; None is the start.
      end: seconds after the file's start; None is the file's end.
      label: class index; a tuple of them where a clip has any number; None if unknown.
      captions: texts, if any.
      num_frames: images in the folder, if their names have a pattern; else None.
      frame_pattern: their names by number, from 1, such as "img_{:05}.jpg"; else None.
      source: name of the corpus ("ssv2": not to be flipped); "" if unnamed.
    """

    id: str
    path: str
    start: float | None = None
    end: float | None = None
    label: int | tuple[int, ...] | None = None
    captions: tuple[str, ...] = ()
    num_frames: int | None = None
    frame_pattern: str | None = None
    source: str = ""


class Problem(NamedTuple):
    """What is wrong with one entry of an annotation file.

    Attributes:
      line: where the entry begins, from 1; None if the whole file is meant.
      expected: what should be there.
      found: what is there.
    """

    line: int | None
    expected: str
    found: str

    def __str__(self) -> str:
        return f"expected {self.expected}, found {self.found}"


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message lists what is wrong with it.

    Attributes:
      path: the file.
      problems: its first `MAX_KEPT_PROBLEMS` problems, in order.
      num_problems: of all its entries.
      num_entries: good and bad ones.
    """

    def __init__(self, path: str, problems: Sequence[Problem], num_problems: int, num_entries: int):
        super().__init__(path, problems, num_problems, num_entries)
        self.path = path
        self.problems = tuple(problems)
        self.num_problems = num_problems
        self.num_entries = num_entries

    def __str__(self) -> str:
        if len(self.problems) == 1 and self.problems[0].line is None:
            return f"{self.path}: {self.problems[0]}"
        lines = [f"{self.path}: {self.num_problems} of {self.num_entries} entries are wrong"]
        for problem in self.problems[:MAX_SHOWN_PROBLEMS]:
            place = self.path if problem.line is None else f"{self.path}:{problem.line}"
            lines.append(f"  {place}: {problem}")
        if self.num_problems > MAX_SHOWN_PROBLEMS:
            lines.append(f"  and {self.num_problems - MAX_SHOWN_PROBLEMS} more")
        return "\n".join(lines)


class Annotations(NamedTuple):
    """A checked annotation file.

    Attributes:
      format: the format that it is in.
      records: its good entries.
      error: its bad ones; None if there are none.
    """

    format: Format | None
    records: list[ClipRecord]
    error: AnnotationError | None


def read_annotations(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    num_classes: int | None = None,
    separator: str | None = None,
    frame_pattern: str = FRAME_PATTERN,
    check_files: bool = False,
) -> list[ClipRecord]:
    """Reads the clips of an annotation file.

    Paths in the file are relative to `root` and lie in it, absolute ones too; symbolic links in
    `root` may lead anywhere, since only its owner can make them.

    Args:
      path: the file, UTF-8.
      root: folder of the clips; by default the file's own. "/" admits any absolute path.
      format: "jsonl", "csv", "interval", "frames", "pretrain" or "json" (see docs/data.md); "auto"
        goes by the file's name and first lines.
      num_classes: C, so that every clip needs a label and every label is below C; None admits all.
      separator: character between columns of the text formats; None goes by the first lines.
      frame_pattern: names of images by number, from 1, in the folders of `frames`.
      check_files: whether to look for each clip on disk.

    Returns:
      At least one record, in the file's order, with unique ids.

    Raises:
      AnnotationError: anything is wrong, and then everything that is.
      ValueError: no such format, or a useless separator or pattern.
    """
    annotations = check_annotations(
        path,
        root=root,
        format=format,
        num_classes=num_classes,
        separator=separator,
        frame_pattern=frame_pattern,
        check_files=check_files,
    )
    if annotations.error is not None:
        raise annotations.error
    return annotations.records


def check_annotations(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    num_classes: int | None = None,
    separator: str | None = None,
    frame_pattern: str = FRAME_PATTERN,
    check_files: bool = False,
) -> Annotations:
    """Reads an annotation file as `read_annotations` does, but gives errors beside good entries.

    Raises:
      ValueError: no such format, or a useless separator or pattern.
    """
    path = os.fspath(path)
    _check_arguments(format, separator, frame_pattern)
    known = None if format == "auto" else next(f for f in FORMATS if f == format)
    folder = os.path.dirname(os.path.abspath(path)) if root is None else os.path.abspath(root)
    try:
        _check_is_file(path)
        told, mark = tell_format(path, known, separator)
    except EntryError as error:
        problem = Problem(None, error.expected, error.found)
        return Annotations(known, [], AnnotationError(path, [problem], 1, 0))
    checker = _Checker(folder, num_classes, check_files, told == "json")
    problems: list[Problem] = []
    records: list[ClipRecord] = []
    num_entries = 0
    for line, entry in read_entries(path, told, mark, frame_pattern):
        num_entries += 1
        try:
            if isinstance(entry, EntryError):
                raise entry
            records.append(checker.record(line, entry))
        except EntryError as error:
            if num_entries - len(records) <= MAX_KEPT_PROBLEMS:
                problems.append(Problem(line, error.expected, error.found))
    num_problems = num_entries - len(records)
    if not num_entries:
        problems, num_problems = [Problem(None, "at least one clip", "none")], 1
    if problems:
        found = AnnotationError(path, problems, num_problems, num_entries)
        return Annotations(told, records, found)
    return Annotations(told, records, None)


class _Checker:
    """Makes records of entries that fit their surroundings."""

    def __init__(
        self, root: str, num_classes: int | None, check_files: bool, may_repeat_paths: bool
    ):
        self._root = root
        self._num_classes = num_classes
        self._check_files = check_files
        self._may_repeat_paths = may_repeat_paths
        self._lines: dict[str, int] = {}
        self._repeats: dict[str, int] = {}

    def record(self, line: int, entry: Entry) -> ClipRecord:
        """Makes a record.

        Raises:
          EntryError: the entry is wrong.
        """
        path = self._path(entry.path)
        if entry.start is not None or entry.end is not None:
            _check_times(entry)
        if entry.num_frames is not None:
            _check_images(entry)
        if self._num_classes is not None:
            _check_label(entry.label, self._num_classes)
        if self._check_files:
            _check_exists(path, entry)
        return ClipRecord(
            self._id(line, entry),
            path,
            entry.start,
            entry.end,
            entry.label,
            entry.captions,
            entry.num_frames,
            entry.frame_pattern,
            entry.source,
        )

    def _path(self, written: str) -> str:
        if not written or "\x00" in written or "://" in written:
            raise EntryError("the path of a local file", quote(written))
        path = join_inside(self._root, written)
        if path is None:
            raise EntryError(
                f"a path inside the root {self._root} (--root or root= names another)",
                quote(written),
            )
        return path

    def _id(self, line: int, entry: Entry) -> str:
        name = _default_id(entry) if entry.id is None else entry.id
        if name not in self._lines:
            self._lines[name] = line
            return name
        # Retrieval lists hold one entry for each caption of a video.
        if not self._may_repeat_paths:
            raise EntryError(
                'a unique id (by default the path with its times; jsonl may state an "id")',
                f"{quote(name)} again, first on line {self._lines[name]}",
            )
        count = self._repeats.get(name, 1) + 1
        while (numbered := f"{name}#{count}") in self._lines:
            count += 1
        self._repeats[name] = count
        self._lines[numbered] = line
        return numbered


def _check_arguments(format: str, separator: str | None, frame_pattern: str) -> None:
    if format not in ("auto", *FORMATS):
        raise ValueError(
            f"expected a format of annotations (auto, {', '.join(FORMATS)}), found {format!r}"
        )
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise ValueError(f"expected one character as the separator, found {separator!r}")
    try:
        check_frame_pattern(frame_pattern)
    except EntryError as error:
        raise ValueError(f"expected {error.expected}, found {error.found}") from None


def _check_is_file(path: str) -> None:
    expected = "an annotation file"
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise EntryError(expected, error.strerror or str(error)) from None
    if not stat.S_ISREG(mode):
        raise EntryError(expected, "a folder" if stat.S_ISDIR(mode) else "a device or pipe")


def _default_id(entry: Entry) -> str:
    if entry.start is None and entry.end is None:
        return entry.path
    start = "" if entry.start is None else entry.start
    end = "" if entry.end is None else entry.end
    return f"{entry.path}@{start}-{end}"


def _check_times(entry: Entry) -> None:
    start = 0.0 if entry.start is None else entry.start
    end = math.inf if entry.end is None else entry.end
    # The comparison fails for NaN too.
    if not 0 <= start < end or (end == math.inf and entry.end is not None):
        raise EntryError("0 <= start < end in seconds", f"{entry.start} and {entry.end}")
    if entry.num_frames is not None:
        raise EntryError("no times for a folder of images", f"{entry.start} and {entry.end}")


def _check_images(entry: Entry) -> None:
    if entry.num_frames == 0:
        raise EntryError("at least 1 frame in the folder", str(entry.num_frames))
    check_frame_pattern(entry.frame_pattern or "")


def _check_label(label: int | tuple[int, ...] | None, num_classes: int) -> None:
    labels = label if isinstance(label, tuple) else (label,)
    for each in labels:
        if each is None or each >= num_classes:
            found = "none" if each is None else str(each)
            raise EntryError(f"a label from 0 to {num_classes - 1}", found)


def _check_exists(path: str, entry: Entry) -> None:
    if entry.num_frames is not None and not os.path.isdir(path):
        raise EntryError(f"a folder of images at {path}", _kind(path))
    if entry.num_frames is None and not os.path.exists(path):
        raise EntryError(f"a file at {path}", _kind(path))


def _kind(path: str) -> str:
    return "a file" if os.path.exists(path) else "nothing there"
