"""Clips that no list names: the videos in folders, and folders that are classes."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from internvideo_jax.data.annotations.records import is_class_name
from internvideo_jax.data.decode.paths import VIDEO_EXTENSIONS, is_hidden

# Folders that are named one by one.
_MAX_NAMED = 5


class ClassClip(NamedTuple):
    """A video in the folder of its class.

    Attributes:
      path: absolute.
      label: name of the class.
    """

    path: str
    label: str


def find_videos(folder: str | os.PathLike[str]) -> list[str]:
    """All that looks like a video in a folder and the folders in it.

    Hidden files and folders (`decode.paths.is_hidden`) are left out. Symbolic links are followed;
    a folder that several of them lead to is searched once, where it lies if that is in `folder`.

    Returns:
      Absolute paths in alphabetical order; none if there are no videos.

    Raises:
      ValueError: a folder that cannot be read.
    """
    return sorted(_walk(os.path.abspath(folder)))


def named_videos(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The videos that a command line names: files as they are, folders with all that is in them.

    Returns:
      Absolute paths, each once, in the order in which they are named.

    Raises:
      ValueError: a path that does not exist; a folder without videos, or one that cannot be read.
    """
    named = [os.fspath(path) for path in paths]
    absent = [path for path in named if not os.path.lexists(path)]
    if absent:
        raise ValueError(
            f"expected video files and folders, found nothing at {', '.join(absent)};"
            " check these paths"
        )
    videos: dict[str, None] = {}
    for path in named:
        found = find_videos(path) if os.path.isdir(path) else [os.path.abspath(path)]
        if not found:
            raise ValueError(
                f"{path}: expected a folder with videos ({', '.join(VIDEO_EXTENSIONS)}),"
                " found none; name files of other extensions one by one"
            )
        videos.update(dict.fromkeys(found))
    return list(videos)


def has_class_folders(folder: str | os.PathLike[str]) -> bool:
    """Whether all videos of a folder lie in folders in it, which then may stand for classes.

    Raises:
      ValueError: a folder that cannot be read.
    """
    entries = _entries(os.path.abspath(folder))
    folders = [entry for entry in entries if _is_folder(entry)]
    if any(_is_video(entry.name) for entry in entries if entry not in folders):
        return False
    return any(find_videos(entry.path) for entry in folders)


def read_class_folders(folder: str | os.PathLike[str]) -> list[ClassClip]:
    """The videos of a folder that holds one folder for each class, named for it.

    Videos may lie in further folders below that of their class; hidden ones are left out, links
    are followed (`find_videos`).

    Returns:
      At least one clip, class by class in alphabetical order.

    Raises:
      ValueError: no folders, videos beside them, one without videos, one that cannot be read, or
        with a name that cannot stand for a class (`records.is_class_name`).
    """
    folder = os.path.abspath(folder)
    entries = _entries(folder)
    classes = [entry for entry in entries if _is_folder(entry)]
    expected = f"{folder}: expected one folder of videos for each class"
    if not classes:
        raise ValueError(f"{expected}, found no folders; sort the videos into such folders")
    stray = [entry.name for entry in entries if _is_video(entry.name) and entry not in classes]
    if stray:
        raise ValueError(f"{expected}, found {stray[0]!r} beside them; move it into one")
    clips: list[ClassClip] = []
    for entry in classes:
        if not (entry.name.isprintable() and is_class_name(entry.name)):
            raise ValueError(f"{expected}, found the name {entry.name!r}; rename it")
        videos = find_videos(entry.path)
        if not videos:
            raise ValueError(f"{expected}, found none in {entry.name!r}; remove the folder")
        clips += [ClassClip(video, entry.name) for video in videos]
    return clips


def level_warnings(folder: str | os.PathLike[str], paths: Iterable[str]) -> list[str]:
    """A line where the folders of classes seem to lie a level deeper than the folder says.

    That is where several classes hold folders of the same names, or none holds a video itself.

    Args:
      folder: the one that holds one folder for each class.
      paths: of the videos in them, absolute.
    """
    folder = os.path.abspath(folder)
    inner: dict[str, set[str]] = {}
    holders: dict[str, set[str]] = defaultdict(set)
    is_deep = True
    for path in paths:
        name, *below = os.path.relpath(path, folder).split(os.sep)
        inner.setdefault(name, set())
        if len(below) > 1:
            inner[name].add(below[0])
            holders[below[0]].add(name)
        else:
            is_deep = False
    same = sorted(name for name, classes in holders.items() if len(classes) > 1)
    if len(same) < 2 and not is_deep:
        return []
    likely = os.path.join(folder, max(inner, key=lambda name: len(inner[name])))
    found = (
        f"several classes hold folders of the same names ({_some(same)})"
        if len(same) > 1
        else "no video lies in the folder of its class itself, all lie in folders in it"
    )
    return [f"{folder}: {found}; did you mean {likely}? The classes are now {_some(sorted(inner))}"]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _walk(folder: str) -> Iterator[str]:
    """Paths of videos; each folder once, so that links can neither loop nor multiply."""
    seen = set()
    folders, links = [folder], list[str]()
    while folders or links:
        # What links lead to may lie in the folder: then it is found there first.
        path = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            # An inner one may be gone since its folder was read.
            if path == folder:
                raise
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _entries(path):
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            elif _is_video(entry.name):
                yield entry.path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise ValueError(
            f"{folder}: expected a folder that can be searched for videos, found"
            f" {error.strerror!r}; mend that, or name its files one by one"
        ) from error
    return sorted(found, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    # A link to itself.
    except OSError:
        return False


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_EXTENSIONS)
