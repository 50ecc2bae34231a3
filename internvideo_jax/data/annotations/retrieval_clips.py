"""The clips of retrieval lists: which files the names of videos stand for, and which are the same.

A name is a path below the root. One without a folder may also be an id, which stands for the file
of that name anywhere below the root, whatever its ending tells of its kind.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

from internvideo_jax.data.annotations.entries import EntryError
from internvideo_jax.data.annotations.folders import find_videos
from internvideo_jax.data.annotations.lines import read_lines
from internvideo_jax.data.annotations.records import AnnotationError, ClipRecord, Problem
from internvideo_jax.data.decode.paths import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS, join_inside
from internvideo_jax.files import check_regular, read_json

# MSR-VTT's 200,000 sentences take a tenth of it.
MAX_JSON_BYTES = 2**28
_MEDIA = (*VIDEO_EXTENSIONS, *AUDIO_EXTENSIONS)


def find_files(videos: Iterable[str], folder: str) -> dict[str, list[str]]:
    """The files that each video may be: several if its id is not unique, none if it is missing.

    Args:
      videos: paths below the folder, or ids.
      folder: root of the videos, absolute.
    """
    files = {}
    for video in videos:
        path = join_inside(folder, video) or ""
        files[video] = [path] if os.path.isfile(path) else []
    ids = {video: _id(video) for video in files if not files[video] and _is_id(video)}
    if ids and os.path.isdir(folder):
        found = _by_id(find_videos(folder))
        files |= {video: found.get(name, []) for video, name in ids.items()}
    return files


def same_clips(records: Iterable[ClipRecord]) -> list[list[ClipRecord]]:
    """The records of each clip: those of the same file, from and to the same time.

    Links to a file are that file.
    """
    clips: dict[Any, list[ClipRecord]] = {}
    for record in records:
        clips.setdefault(clip_key(record), []).append(record)
    return list(clips.values())


def clip_key(record: ClipRecord) -> tuple[Any, ...]:
    """What is the same for records of the same clip only."""
    images = record.num_frames, record.frame_pattern
    return os.path.realpath(record.path), record.start or 0.0, record.end, *images


def merged(same: Sequence[ClipRecord]) -> ClipRecord:
    """The first record of a clip, with the captions of all."""
    captions = tuple(text for record in same for text in record.captions)
    names = tuple(
        name for record in same for name in record.caption_names or ("",) * len(record.captions)
    )
    return dataclasses.replace(
        same[0], captions=captions, caption_names=names if any(names) else ()
    )


def choose(
    clips: Sequence[list[ClipRecord]], videos: str, path: str, folder: str
) -> list[list[ClipRecord]]:
    """The clips that another list names, in its order.

    Args:
      clips: the records of each.
      videos: the other list.
      path: the list that `clips` are of, for messages.
      folder: root of the videos, absolute.

    Raises:
      AnnotationError: no names, some of none of the clips, or ids of several.
    """
    number_of = {record.path: n for n, same in enumerate(clips) for record in same}
    paths_of = _by_id(number_of)
    chosen: dict[int, None] = {}
    problems: list[Problem] = []
    unknown: list[str] = []
    for name in _names(videos):
        file = join_inside(folder, name)
        paths = paths_of.get(_id(name), []) if _is_id(name) else []
        if file in number_of:
            paths = [file]
        numbers = sorted({number_of[found] for found in paths})
        if len(numbers) > 1:
            found = " and ".join(clips[n][0].id for n in numbers)
            expected = f"the name of one video of {path}, with its folder"
            problems.append(Problem(None, expected, f"{name}, which may be {found}"))
        elif numbers:
            chosen[numbers[0]] = None
        else:
            unknown.append(name)
    if unknown:
        found = (
            f"{len(unknown)} others: {', '.join(unknown[:5])}; name a list of the same benchmark"
        )
        problems.append(Problem(None, f"videos of {path}", found))
    if problems:
        raise AnnotationError(videos, problems, len(problems), len(problems) + len(chosen))
    return [clips[n] for n in chosen]


def _names(videos: str) -> list[str]:
    """Names of videos: one a line, or a JSON list, or the keys of a JSON object."""
    check_regular(videos)
    names: list[str] = []
    if videos.lower().endswith(".json"):
        names = [str(name) for name in read_json(videos, MAX_JSON_BYTES)]
    else:
        for number, line in read_lines(videos):
            if isinstance(line, EntryError):
                raise AnnotationError(videos, [Problem(number, line.expected, line.found)], 1, 1)
            names.append(line.strip())
    if not names:
        problem = Problem(None, "names of videos, one a line or as a JSON list", "none")
        raise AnnotationError(videos, [problem], 1, 0)
    return names


def _id(video: str) -> str:
    """A video's file name without endings that tell its kind ("x.avi.mp4" is "x")."""
    name = os.path.basename(video)
    while name.lower().endswith(_MEDIA):
        name = name[: name.rindex(".")]
    return name


def _is_id(video: str) -> bool:
    """Whether a name may stand for a file anywhere; with a folder, it stands for its path alone."""
    return not os.path.dirname(video)


def _by_id(paths: Iterable[str]) -> dict[str, list[str]]:
    """The paths that each id may stand for."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(_id(path), []).append(path)
    return found
