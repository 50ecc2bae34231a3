"""Annotation files: which clips a data set has, and what is known of each.

A file is read once: its clips are kept in an `EntryFile`, which every later start and every process
maps into memory. It lies in the folder `lists` of `environment.home()`, under a name that goes by
the annotation file's content; whoever needs the room may delete it.
"""

import contextlib
import hashlib
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

from internvideo_jax import environment
from internvideo_jax.data.annotations.building import build
from internvideo_jax.data.annotations.columns import is_media
from internvideo_jax.data.annotations.entries import (
    FORMATS,
    FRAME_PATTERN,
    EntryError,
    Format,
    check_frame_pattern,
)
from internvideo_jax.data.annotations.entry_file import (
    MAX_NAMES,
    DamagedFileError,
    EntryFile,
    remove_abandoned,
)
from internvideo_jax.data.annotations.formats import Layout
from internvideo_jax.data.annotations.layouts import tell_layout
from internvideo_jax.data.annotations.records import (
    AnnotationError,
    ClipRecord,
    Context,
    Problem,
    clip_record,
)
from internvideo_jax.files import write_text

# Changes with what files of entries hold, and with what entries mean.
_VERSION = "internvideo_jax list 4"
# A file that was changed so lately may change again without its time showing it.
_SETTLING_SECONDS = 2.0
_DIGEST = re.compile("[0-9a-f]{64}")
# A list of this size takes about a second.
_LONG_BYTES = 2**24

_log = logging.getLogger(__name__)


class ClipList(Sequence[ClipRecord]):
    """The clips of an annotation file; pickled, it is the name of the file that holds them.

    Args:
      file: an `EntryFile`.
      root: absolute folder of the clips.
      rows: which of its clips; None is all.

    Attributes:
      summary: what all clips of the file amount to.
    """

    def __init__(self, file: str, root: str, rows: range | None = None):
        self._file, self._root = file, root
        self._entries = EntryFile(file)
        self.summary = self._entries.summary
        self._rows = range(len(self._entries)) if rows is None else rows

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipList, (self._file, self._root, self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} clips in {self._file}>"

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ClipRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "ClipList": ...
    def __getitem__(self, index: int | slice) -> "ClipRecord | ClipList":
        rows = self._rows[index]
        if isinstance(rows, range):
            # Not through the file: of a faulty list, it is gone.
            some = ClipList.__new__(ClipList)
            some.__dict__.update(self.__dict__, _rows=rows)
            return some
        return clip_record(self._entries[rows], self._root)

    def __iter__(self) -> Iterator[ClipRecord]:
        return (clip_record(self._entries[row], self._root) for row in self._rows)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The different labels of all clips of the file that are names, in alphabetical order."""
        return tuple(sorted(self.summary.names))

    @property
    def fingerprint(self) -> str:
        """Changes with the clips and their order, but not with where they lie."""
        return f"{self.summary.fingerprint} {self._rows}"

    def fits(self, context: Context) -> bool:
        """Whether it is beyond doubt that all clips fit."""
        known, prefix = self.summary, context.root.rstrip(os.sep) + os.sep
        if known.climbs or not all(path.startswith(prefix) for path in known.absolute or ()):
            return False
        if context.num_classes is None:
            return True
        return (
            not known.has_unlabelled
            and known.max_label < context.num_classes
            and known.names <= context.classes
        )


class Annotations(NamedTuple):
    """A checked annotation file.

    Attributes:
      format: the format that it is in.
      records: its good entries. If there are bad ones, they are on disk only as long as this
        process uses them.
      error: its bad ones; None if there are none.
    """

    format: Format | None
    records: Sequence[ClipRecord]
    error: AnnotationError | None


def read_annotations(path: str | os.PathLike[str], **options: Any) -> Sequence[ClipRecord]:
    """Reads the clips of an annotation file, all of which must be right.

    Args:
      path: the file.
      options: those of `check_annotations`.

    Returns:
      At least one record, in the file's order, with unique ids; a `ClipList`.

    Raises:
      AnnotationError: anything is wrong, and then everything that is.
      ValueError: no such format, or a useless separator or pattern.
    """
    annotations = check_annotations(path, **options)
    if annotations.error is not None:
        raise annotations.error
    return annotations.records


def check_annotations(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    num_classes: int | None = None,
    classes: Collection[str] | None = None,
    separator: str | None = None,
    frame_pattern: str = FRAME_PATTERN,
    check_files: bool = False,
) -> Annotations:
    """Reads an annotation file; errors are beside the good entries.

    Paths in the file are relative to `root` and lie in it, absolute ones too; symbolic links in
    `root` may lead anywhere, since only its owner can make them.

    Args:
      path: the file, UTF-8.
      root: folder of the clips; by default the file's own. "/" admits any absolute path.
      format: "jsonl", "csv", "interval", "frames", "pretrain" or "json" (see docs/data.md); "auto"
        goes by the file's name and first lines.
      num_classes: C, so that every clip needs a label and every number is below C; None admits all.
      classes: names of these classes, of which every label that is a name must be one.
      separator: character between columns of the text formats; None goes by the first lines.
      frame_pattern: names of images by number, from 1, in the folders of `frames`.
      check_files: whether to look for each clip on disk; reads the file anew.

    Raises:
      ValueError: no such format, or a useless separator or pattern.
    """
    path = os.fspath(path)
    _check_arguments(format, separator, frame_pattern)
    known = None if format == "auto" else next(f for f in FORMATS if f == format)
    folder = os.path.dirname(os.path.abspath(path)) if root is None else os.path.abspath(root)
    try:
        _check_is_file(path)
        layout = tell_layout(path, known, separator, frame_pattern)
    except EntryError as error:
        problem = Problem(None, error.expected, error.found)
        return Annotations(known, [], AnnotationError(path, [problem], 1, 0))
    if classes and num_classes is None:
        num_classes = len(classes)
    context = Context(folder, num_classes, check_files, frozenset(classes or ()))
    name = _name(path, layout)
    if not check_files:
        for place in _places():
            with contextlib.suppress(OSError, DamagedFileError):
                records = ClipList(str(place / name), folder)
                if records.fits(context):
                    return Annotations(layout.format, records, None)
    return _read(path, layout, context, name)


def _read(path: str, layout: Layout, context: Context, name: str) -> Annotations:
    """Makes the file of entries of an annotation file; keeps it if all entries are good."""
    place = _writable_place()
    remove_abandoned(place)
    if os.stat(path).st_size > _LONG_BYTES:
        _log.info("reading %s into %s", path, place / name)
    built = build(path, layout, context, place, Path(name).stem)
    problems, num_problems = built.problems, built.num_problems
    if not built.num_entries:
        problems, num_problems = [Problem(None, "at least one clip", "none")], 1
    elif _name(path, layout) != name:
        expected = "a file that nobody changes while it is read"
        problems, num_problems = [Problem(None, expected, "a changed one")], 1
    elif len(EntryFile(built.file).summary.names) > MAX_NAMES:
        expected = f"labels of at most {MAX_NAMES:,} classes"
        problems, num_problems = [Problem(None, expected, "more different names")], 1
    try:
        if problems:
            error = AnnotationError(path, problems, num_problems, built.num_entries)
            return Annotations(layout.format, ClipList(str(built.file), context.root), error)
        os.replace(built.file, place / name)
        return Annotations(layout.format, ClipList(str(place / name), context.root), None)
    finally:
        built.file.unlink(missing_ok=True)


def _name(path: str, layout: Layout) -> str:
    """The name of an annotation file's file of entries."""
    pattern = layout.frame_pattern if layout.format == "frames" else None
    parts = (_VERSION, _content(path), layout.format, layout.separator, pattern)
    return f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.clips"


def _content(path: str) -> str:
    """Checksum of a file; remembered as long as the file shows no change."""
    status = os.stat(path)
    state = (os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ino)
    note = f"{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}.sha256"
    for place in _places():
        with contextlib.suppress(OSError, UnicodeDecodeError):
            known = (place / note).read_text("utf-8")
            if _DIGEST.fullmatch(known):
                return known
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - status.st_mtime > _SETTLING_SECONDS:
        with contextlib.suppress(OSError):
            write_text(_writable_place() / note, digest)
    return digest


def _places() -> tuple[Path, Path]:
    """Where files of entries may lie: at home, or if that cannot be written, in a folder apart."""
    apart = Path(tempfile.gettempdir()) / f"internvideo_jax-{os.getuid()}"
    with contextlib.suppress(FileNotFoundError):
        if apart.lstat().st_uid != os.getuid():
            raise PermissionError(f"{apart} is another user's: set INTERNVIDEO_HOME, or TMPDIR")
    return environment.home() / "lists", apart


def _writable_place() -> Path:
    home, apart = _places()
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    if os.access(home, os.W_OK):
        return home
    _log.warning("%s cannot be written: what is read of annotations is kept in %s", home, apart)
    apart.mkdir(mode=0o700, exist_ok=True)
    return apart


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
        found = f"{error.strerror or error}; check the path"
        raise EntryError(f"{expected}, or a folder with one for each class", found) from None
    if is_media(path):
        raise EntryError(expected, "a video or sound; name a list of such files, or their folder")
    if not stat.S_ISREG(mode):
        raise EntryError(expected, "a folder" if stat.S_ISDIR(mode) else "a device or pipe")
