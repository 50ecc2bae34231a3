"""Lists of multiple choice: clips, candidate texts of each, and which of them are right.

An item is an object: {"video": path or id, "candidates": [texts], "answer": number of the right one
from 0, or a list of 0 and 1 where several may be right}. The candidates may be called "option", as
InternVideo2's lists of Something-Something V2 and Charades have them, or "caption", as those of
MSR-VTT. A .json file is a list of items, a .jsonl file has one on each line.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from internvideo_jax.data.annotations.entries import EntryError, quote
from internvideo_jax.data.annotations.lines import parse_json, read_items, read_lines
from internvideo_jax.data.annotations.records import (
    MAX_KEPT_PROBLEMS,
    AnnotationError,
    ClipRecord,
    Problem,
)
from internvideo_jax.data.annotations.retrieval_clips import find_files
from internvideo_jax.data.decode.paths import join_inside
from internvideo_jax.files import check_regular

_CANDIDATES = ("candidates", "option", "options", "caption")


@dataclasses.dataclass(frozen=True)
class ChoiceClips:
    """The clips of a list.

    Attributes:
      records: in the order of the list; captions are the candidates, the label is the number of the
        right one, or a tuple of the numbers where any number may be right.
      missing: ids of clips that are not on disk.
    """

    records: tuple[ClipRecord, ...]
    missing: tuple[str, ...]

    @property
    def is_multi_label(self) -> bool:
        """Whether any number of a clip's candidates may be right."""
        return isinstance(self.records[0].label, tuple)

    @property
    def candidates(self) -> tuple[str, ...]:
        """All different candidates."""
        # Lists of the same candidates for every clip share them.
        lists = {id(record.captions): record.captions for record in self.records}
        return tuple(dict.fromkeys(text for own in lists.values() for text in own))

    @property
    def most_candidates(self) -> int:
        """Of a clip."""
        return max(len(record.captions) for record in self.records)


def read_choices(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
) -> ChoiceClips:
    """Reads a list of multiple choice.

    Args:
      path: the list.
      root: folder of the videos, which are named as in lists of retrieval; by default the list's
        own.

    Raises:
      AnnotationError: items without a video, candidates or an answer, answers of another kind than
        the first, candidates that differ from clip to clip where any number may be right, or ids of
        several files; lists them.
      OSError: no such file.
    """
    path = os.fspath(path)
    check_regular(path)
    folder = os.path.abspath(os.path.dirname(path) if root is None else root)
    records: list[ClipRecord] = []
    problems: list[Problem] = []
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    num_problems = 0
    for line, item in _items(path):
        try:
            if isinstance(item, EntryError):
                raise item
            video, candidates, answer = _checked(item, folder)
            candidates = known.setdefault(candidates, candidates)
            if records:
                _check_alike(records[0], candidates, answer)
        except EntryError as error:
            num_problems += 1
            if len(problems) < MAX_KEPT_PROBLEMS:
                problems.append(Problem(line, error.expected, error.found))
        else:
            records.append(ClipRecord(video, "", label=answer, captions=candidates))
    files = find_files((record.id for record in records), folder)
    several = [
        Problem(None, f"one file for the video {video}", " and ".join(found))
        for video, found in files.items()
        if len(found) > 1
    ]
    num_problems += len(several)
    problems += several
    if not records and not problems:
        problems, num_problems = [Problem(None, "at least one clip with candidates", "none")], 1
    if problems:
        raise AnnotationError(path, problems, num_problems, num_problems + len(records))
    paths = {
        video: found[0] if found else join_inside(folder, video) or ""
        for video, found in files.items()
    }
    found = (dataclasses.replace(record, path=paths[record.id]) for record in records)
    missing = tuple(video for video, places in files.items() if not places)
    return ChoiceClips(tuple(found), missing)


def _items(path: str) -> Iterator[tuple[int, Any]]:
    """The items of a list, right or wrong, with the lines that they begin on."""
    if path.lower().endswith(".json"):
        yield from read_items(path)
        return
    for number, line in read_lines(path):
        try:
            yield number, line if isinstance(line, EntryError) else parse_json(line)
        except EntryError as error:
            yield number, error


def _checked(item: Any, folder: str) -> tuple[str, tuple[str, ...], int | tuple[int, ...]]:
    """The video of an item, its candidates, and the numbers of those that are right."""
    if not isinstance(item, dict):
        raise EntryError("an object with video, candidates and answer", quote(item))
    video = item.get("video")
    if not isinstance(video, str) or not _is_text(video) or "\0" in video or "://" in video:
        raise EntryError('"video": the path or the id of a video', quote(video))
    if join_inside(folder, video) is None:
        raise EntryError(
            f"a video inside the root {folder} (--config.eval_data.root names another)",
            quote(video),
        )
    stated = next((item[key] for key in _CANDIDATES if key in item), None)
    if not isinstance(stated, list) or len(stated) < 2 or not all(map(_is_text, stated)):
        raise EntryError('"candidates": a list of two or more texts', quote(stated))
    answer, count = item.get("answer"), len(stated)
    if type(answer) is int and 0 <= answer < count:
        return video, tuple(stated), answer
    if isinstance(answer, list) and len(answer) == count and all(_is_bit(x) for x in answer):
        return video, tuple(stated), tuple(n for n, x in enumerate(answer) if x)
    raise EntryError(
        f'"answer": a number from 0 to {count - 1}, or a list of {count} zeros and ones',
        quote(answer),
    )


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        # Escapes may name half a character.
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_bit(value: Any) -> bool:
    return type(value) is int and value in (0, 1)


def _check_alike(
    first: ClipRecord, candidates: tuple[str, ...], answer: int | tuple[int, ...]
) -> None:
    if isinstance(answer, tuple) is not isinstance(first.label, tuple):
        kind = "a list of zeros and ones" if isinstance(first.label, tuple) else "a number"
        raise EntryError(f'"answer": {kind}, as the first clip has it', "another kind")
    if isinstance(answer, tuple) and candidates != first.captions:
        raise EntryError(
            "the candidates of the first clip, where any number of them may be right", "others"
        )
