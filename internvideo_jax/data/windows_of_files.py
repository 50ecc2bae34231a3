"""Windows of many video files, whose batches are full whatever the files' lengths."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.video import VideoError
from internvideo_jax.data.examples import join_rows
from internvideo_jax.data.pipeline import Batch
from internvideo_jax.data.sources.source import reason
from internvideo_jax.data.watchdog import BackgroundIterator
from internvideo_jax.data.windows import (
    OpenVideo,
    Windows,
    in_threads,
    num_views,
    unread_windows,
)


def windows_of_files(
    paths: Sequence[str | os.PathLike[str]],
    config: DataConfig,
    windows: Windows,
    *,
    batch_size: int,
    num_threads: int | None = None,
) -> BackgroundIterator[Batch]:
    """All windows of video files, one file after the other, decoded ahead in threads.

    Args:
      paths: the files.
      config: frames and size of the views, and how many of them a window has.
      windows: where each is cut.
      batch_size: rows (views) in a batch; the last may have fewer.
      num_threads: decoding threads; by default one per CPU core.

    Returns:
      An iterator of batches as of `windows.window_batches`, with one more column,
        file: int64 `[b]`, number of the path.
        A file that cannot be read has one window, whose `start` and `end` are NaN and whose `error`
        says why.

    Raises:
      StalledLoader: from `next`, loading hangs.
    """

    def make(first_batch: int) -> Iterator[Batch]:
        opened: set[OpenVideo] = set()
        with contextlib.ExitStack() as stack:
            stack.callback(_close, opened)
            per_part = max(batch_size // num_views(config), 1)
            tasks = _tasks(paths, config, windows, per_part, opened)
            wanted = _after(tasks, first_batch * batch_size)
            # Ends before the files are closed, which its threads read.
            parts = stack.enter_context(contextlib.closing(in_threads(wanted, num_threads)))
            yield from _rebatched(_closing(parts, opened), batch_size)

    return BackgroundIterator(make, timeout=config.stall_timeout)


class _Part(NamedTuple):
    """Successive windows of a file.

    Attributes:
      batch: their rows.
      video: the file, if it could be opened.
      is_last: whether the file has no more.
    """

    batch: Batch
    video: OpenVideo | None
    is_last: bool


class _Task(NamedTuple):
    """A part that is still to be read.

    Attributes:
      rows: it has.
      read: gives it.
    """

    rows: int
    read: Callable[[], _Part]


def _tasks(
    paths: Sequence[str | os.PathLike[str]],
    config: DataConfig,
    windows: Windows,
    per_part: int,
    opened: set[OpenVideo],
) -> Iterator[_Task]:
    """All windows of all files, at most `per_part` together; files are in `opened` meanwhile."""
    views = num_views(config)
    for number, path in enumerate(paths):
        try:
            video = OpenVideo(path, windows)
        except (VideoError, OSError, ValueError) as error:
            why = reason(error).removeprefix(f"{os.fspath(path)}: ")
            yield _Task(views, functools.partial(_unread_file, config, number, why))
            continue
        opened.add(video)
        for first in range(0, len(video.times), per_part):
            stop = min(first + per_part, len(video.times))
            rows = (stop - first) * views
            yield _Task(rows, functools.partial(_read, video, config, number, first, stop))


def _read(video: OpenVideo, config: DataConfig, number: int, first: int, stop: int) -> _Part:
    try:
        batch = video.read(config, first, stop)
    # Of the disk, or of opening the file once more.
    except (VideoError, OSError) as error:
        batch = unread_windows(config, first, video.times[first:stop], reason(error))
    return _Part(_numbered(batch, number), video, stop == len(video.times))


def _unread_file(config: DataConfig, number: int, error: str) -> _Part:
    batch = unread_windows(config, 0, np.full((1, 2), np.nan), error)
    return _Part(_numbered(batch, number), None, True)


def _numbered(batch: Batch, number: int) -> Batch:
    return batch | {"file": np.full(len(batch["index"]), number)}


def _after(tasks: Iterator[_Task], skipped: int) -> Iterator[Callable[[], _Part]]:
    """What remains of them after so many rows."""
    for task in tasks:
        if skipped >= task.rows:
            skipped -= task.rows
            continue
        yield functools.partial(_without, task.read, skipped) if skipped else task.read
        skipped = 0


def _without(read: Callable[[], _Part], skipped: int) -> _Part:
    part = read()
    return part._replace(batch={name: x[skipped:] for name, x in part.batch.items()})


def _closing(parts: Iterator[_Part], opened: set[OpenVideo]) -> Iterator[Batch]:
    """The rows; parts come in their order, so that nobody reads a file after its last one."""
    for part in parts:
        if part.is_last and part.video is not None:
            part.video.close()
            opened.discard(part.video)
        yield part.batch


def _close(opened: set[OpenVideo]) -> None:
    for video in opened:
        video.close()


def _rebatched(parts: Iterator[Batch], size: int) -> Iterator[Batch]:
    """The same rows, `size` of them at a time."""
    waiting: list[Batch] = []
    for part in parts:
        waiting.append(part)
        if sum(len(batch["index"]) for batch in waiting) < size:
            continue
        rows = join_rows(waiting)
        whole = len(rows["index"]) // size * size
        for start in range(0, whole, size):
            yield {name: x[start : start + size] for name, x in rows.items()}
        waiting = [{name: x[whole:] for name, x in rows.items()}]
    rows = join_rows(waiting) if waiting else {}
    if rows and len(rows["index"]):
        yield rows
