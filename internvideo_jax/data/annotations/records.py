"""What is known of a clip, and which entries of annotation files tell it rightly."""

import dataclasses
import math
import os
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

from internvideo_jax.data.annotations.entries import (
    Entry,
    EntryError,
    Labels,
    check_frame_pattern,
    quote,
)
from internvideo_jax.data.decode.paths import AUDIO_EXTENSIONS, IMAGE_EXTENSIONS, join_inside

# A wrong format makes every line of a long file a bad one.
MAX_KEPT_PROBLEMS = 1000
MAX_SHOWN_PROBLEMS = 20
# Longer than any name of a class, in characters.
MAX_NAME_LENGTH = 500


@dataclasses.dataclass(frozen=True, slots=True)
class ClipRecord:
    """One clip of a data set.

    Attributes:
      id: unique in its data set.
      path: absolute: a file of video or sound, an image, or a folder of images.
      start: seconds after the file's start; None is the start.
      end: seconds after the file's start; None is the file's end.
      label: number or name of its class; a tuple of them where a clip has any number; None if
        unknown. Names become numbers in `data.fields.label`, by `DataConfig.classes`.
      captions: texts, if any.
      num_frames: images in the folder, if their names have a pattern; else None.
      frame_pattern: their names by number, from 1 (or 0, if there is such an image and none of
        the number `num_frames`), such as "img_{:05}.jpg"; else None.
      source: name of the corpus ("ssv2": not to be flipped); "" if unnamed.
      caption_names: what each caption is of, "" if unnamed; () if none has a name.
    """

    id: str
    path: str
    start: float | None = None
    end: float | None = None
    label: Labels = None
    captions: tuple[str, ...] = ()
    num_frames: int | None = None
    frame_pattern: str | None = None
    source: str = ""
    caption_names: tuple[str, ...] = ()

    def captions_named(self, name: str) -> tuple[str, ...]:
        """The captions of a name; for "" those without, or if all have names, all of them."""
        if not self.caption_names:
            return () if name else self.captions
        pairs = zip(self.captions, self.caption_names, strict=True)
        found = tuple(caption for caption, own in pairs if own == name)
        return self.captions if not (found or name) else found

    @property
    def media(self) -> Literal["video", "image", "images", "audio"]:
        """What the names tell of the clip; a folder without `num_frames` passes for a video."""
        if self.num_frames is not None:
            return "images"
        name = self.path.lower()
        if name.endswith(AUDIO_EXTENSIONS):
            return "audio"
        return "image" if name.endswith(IMAGE_EXTENSIONS) else "video"


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


class Context(NamedTuple):
    """What the entries of a file have to fit, beside the rules of their format.

    Attributes:
      root: absolute folder of the clips.
      num_classes: C, so that every clip needs a label and every number is below C; None admits all.
      classes: names of these classes, of which every label that is a name must be one.
      check_files: whether the clips have to be there.
    """

    root: str
    num_classes: int | None = None
    check_files: bool = False
    classes: frozenset[str] = frozenset()


def check_entry(entry: Entry, context: Context, has_names: bool) -> None:
    """Checks what an entry tells, and puts its path in order.

    Args:
      entry: it.
      context: what it has to fit.
      has_names: whether the labels of its file are names, not numbers.

    Raises:
      EntryError: the entry is wrong.
    """
    path = entry.path
    # Most paths are in order already, and there may be millions.
    if path[:1] in "/." or path[-1:] == "/" or "/." in path or "//" in path or "\x00" in path:
        _order_path(entry, context.root)
    if entry.start is not None or entry.end is not None:
        _check_times(entry)
    if entry.num_frames is not None:
        _check_images(entry)
    label = entry.label
    if has_names or not (label is None or isinstance(label, int)):
        _check_kind(label, has_names)
    if context.num_classes is not None:
        _check_label(label, context)
    if context.check_files:
        _check_exists(os.path.join(context.root, entry.path), entry)


def entry_id(entry: Entry) -> str:
    """The id that a clip states, or else its path as written, with the times."""
    if entry.id is not None:
        return entry.id
    start, end = entry.start, entry.end
    if start is None and end is None:
        return entry.path
    # Formatting floats takes longer than their representation, which is the same.
    return f"{entry.path}@{'' if start is None else repr(start)}-{'' if end is None else repr(end)}"


def clip_record(entry: Entry, root: str) -> ClipRecord:
    """The clip of an entry that `check_entry` found right, for the same root."""
    path = join_inside(root, entry.path)
    assert path is not None
    return ClipRecord(
        entry_id(entry),
        path,
        entry.start,
        entry.end,
        entry.label,
        entry.captions,
        entry.num_frames,
        entry.frame_pattern,
        entry.source,
        entry.caption_names,
    )


def _order_path(entry: Entry, root: str) -> None:
    written = entry.path
    if not written or "\x00" in written or "://" in written:
        raise EntryError("the path of a local file", quote(written))
    if join_inside(root, written) is None:
        raise EntryError(
            f"a path inside the root {root} (--root or root= names another)", quote(written)
        )
    ordered = os.path.normpath(written)
    if ordered != written:
        entry.id = entry_id(entry)
        entry.path = ordered


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


def _check_kind(label: Labels, has_names: bool) -> None:
    for each in label if isinstance(label, tuple) else (label,):
        if each is not None and isinstance(each, str) is not has_names:
            kind = "the name of a class" if has_names else "an integer from 0"
            raise EntryError(f"a label: {kind}, as most in this file", quote(each))
        if isinstance(each, str) and not is_class_name(each):
            raise EntryError("a label: the name of a class", quote(each))


def is_class_name(text: str) -> bool:
    """Whether a text can stand for a class in files and on terminals."""
    is_plain = not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
    return is_plain and text.strip() == text and 0 < len(text) <= MAX_NAME_LENGTH


def _check_label(label: Labels, context: Context) -> None:
    assert context.num_classes is not None
    for each in label if isinstance(label, tuple) else (label,):
        if isinstance(each, str):
            if not context.classes:
                raise EntryError(
                    f"a label from 0 to {context.num_classes - 1}, as the names of the classes are"
                    " not given (--classes=FILE of `scan`, data.classes of a config)",
                    f"the name {quote(each)}",
                )
            if each not in context.classes:
                raise EntryError(
                    f"a label: one of the names of the {context.num_classes} classes",
                    quote(each),
                    each,
                    context.classes,
                )
        elif each is None and context.classes:
            raise EntryError(
                f"a label: one of the names of the {context.num_classes} classes", "none"
            )
        elif each is None or each >= context.num_classes:
            found = "none" if each is None else str(each)
            raise EntryError(f"a label from 0 to {context.num_classes - 1}", found)


def _check_exists(path: str, entry: Entry) -> None:
    if entry.num_frames is not None and not os.path.isdir(path):
        raise EntryError(f"a folder of images at {path}", _kind(path))
    if entry.num_frames is None and not os.path.exists(path):
        raise EntryError(f"a file at {path}", _kind(path))


def _kind(path: str) -> str:
    return "a file" if os.path.exists(path) else "nothing there"
