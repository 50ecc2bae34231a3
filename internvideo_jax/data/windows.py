"""Windows of long videos, of which neighbouring ones are decoded together."""

import collections
import contextlib
import dataclasses
import functools
import math
import numbers
import os
import queue
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.video import VideoError, VideoReader, frame_range
from internvideo_jax.data.pipeline import Batch
from internvideo_jax.data.transforms.frames import resizer
from internvideo_jax.data.transforms.views import cut_views, view_indices
from internvideo_jax.data.watchdog import BackgroundIterator
from internvideo_jax.environment import usable_cpus

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a long video is cut.

    Attributes:
      length: seconds of a window.
      stride: seconds from the start of one to the start of the next.

    Raises:
      ValueError: no numbers, no such lengths, or windows with gaps between them.
    """

    length: float
    stride: float

    def __post_init__(self) -> None:
        for name, seconds in (("length", self.length), ("stride", self.stride)):
            if not isinstance(seconds, numbers.Real) or isinstance(seconds, bool):
                raise ValueError(f"{name}: expected a number of seconds, found {seconds!r}")
        if not 0 < self.length < math.inf:
            raise ValueError(f"expected a window of some seconds, found {self.length:g}")
        if not 0 < self.stride <= self.length:
            raise ValueError(
                f"expected a stride above 0 and of at most the window's {self.length:g} s, so that"
                f" nothing is left out, found {self.stride:g}"
            )

    def times(self, begin: float, end: float) -> np.ndarray:
        """Starts and ends in seconds, float64 `[W, 2]`, that cover all from `begin` to `end`.

        The last window ends with the video; one that is shorter than a window is one.
        """
        spare = end - begin - self.length
        # What rounding leaves over is no window.
        steps = max(math.ceil(spare / self.stride - 1e-6), 0)
        starts = begin + np.append(self.stride * np.arange(steps), max(spare, 0.0))
        return np.stack([starts, np.minimum(starts + self.length, end)], axis=1)


def window_batches(
    path: str | os.PathLike[str],
    config: DataConfig,
    windows: Windows,
    *,
    batch_size: int,
    num_threads: int | None = None,
) -> BackgroundIterator[Batch]:
    """All windows of a video file, decoded ahead in threads, those of a batch in one go.

    Args:
      path: the video file.
      config: frames and size of the views, and how many of them a window has.
      windows: where it is cut.
      batch_size: rows (views) in a batch; at least those of one window.
      num_threads: decoding threads, each with a batch of its own; by default one per CPU core.

    Returns:
      An iterator of dicts with at most so many rows b: `video` uint8 `[b, T, S, S, 3]` and
        index: int64 `[b]`, number of the window.
        start: float64 `[b]`, where it begins, in seconds after the file's start; end: float64
          `[b]`.
        frame_indices: int64 `[b, T]`, numbers of its frames in the file; timestamps: float64
          `[b, T]`, when they are shown, in seconds.
        valid: bool `[b]`; False where a frame of the window is damaged or missing.
        error: str `[b]`, why; else "".

    Raises:
      VideoError: from `next`, the file cannot be read.
      ValueError: from `next`, more windows than frames.
      StalledLoader: from `next`, loading hangs.
    """
    per_batch = max(batch_size // num_views(config), 1)

    def make(first_batch: int) -> Iterator[Batch]:
        # Closed when the threads have ended.
        with contextlib.closing(OpenVideo(path, windows)) as video:
            starts = range(first_batch * per_batch, len(video.times), per_batch)
            tasks = (functools.partial(video.read, config, n, n + per_batch) for n in starts)
            with contextlib.closing(in_threads(tasks, num_threads)) as batches:
                yield from batches

    return BackgroundIterator(make, timeout=config.stall_timeout)


class OpenVideo:
    """An open video file, its windows, and as many readers of it as threads read it at a time.

    Args:
      path: the file.
      windows: where it is cut.

    Attributes:
      times: starts and ends of its windows in seconds, float64 `[W, 2]`.

    Raises:
      VideoError: it cannot be read.
      ValueError: more windows than frames.
    """

    def __init__(self, path: str | os.PathLike[str], windows: Windows):
        self._path = path
        self._readers: list[VideoReader] = []
        # A reader serves one thread at a time.
        self._idle: queue.SimpleQueue[VideoReader] = queue.SimpleQueue()
        first = self._opened()
        try:
            self.times = _times(first, windows)
        except BaseException:
            self.close()
            raise
        self._idle.put(first)

    def _opened(self) -> VideoReader:
        reader = VideoReader(self._path)
        self._readers.append(reader)
        return reader

    def read(self, config: DataConfig, first: int, stop: int) -> Batch:
        """The views of the windows from number `first` to before `stop`."""
        try:
            reader = self._idle.get_nowait()
        except queue.Empty:
            reader = self._opened()
        batch = _batch(reader, config, first, self.times[first:stop])
        self._idle.put(reader)
        return batch

    def close(self) -> None:
        """Closes all readers; no thread may be reading."""
        for reader in self._readers:
            reader.close()


def in_threads(
    tasks: Iterable[Callable[[], T]], num_threads: int | None
) -> Generator[T, None, None]:
    """What the tasks return, in their order, some of them done ahead; to be closed.

    Args:
      tasks: what to do.
      num_threads: how many do it; None is one per CPU core.
    """
    threads = num_threads or usable_cpus()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="windows")
    ahead: collections.deque[Future[T]] = collections.deque()
    try:
        for task in tasks:
            ahead.append(pool.submit(task))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def num_views(config: DataConfig) -> int:
    """Rows that a window has."""
    return config.segments * config.crops


def unread_windows(config: DataConfig, first: int, times: np.ndarray, error: str) -> Batch:
    """Rows of windows none of which can be read.

    Args:
      config: their views.
      first: number of the first window.
      times: their starts and ends `[W, 2]`.
      error: why.
    """
    video = _black(config, len(times) * num_views(config))
    shown = np.full((len(times), config.segments, config.num_frames), -1)
    errors = [error] * len(times)
    return _columns(config, video, first, times, shown, np.full(shown.shape, np.nan), errors)


def _times(reader: VideoReader, windows: Windows) -> np.ndarray:
    """Starts and ends of the windows of an open file, float64 `[W, 2]`."""
    index = reader.index
    if index.duration / windows.stride > index.num_frames:
        raise ValueError(
            f"{index.path}: expected a stride of at least a frame"
            f" ({index.duration / index.num_frames:.3g} s), found {windows.stride:g} s"
        )
    begin = float(index.timestamps[0])
    return windows.times(begin, begin + index.duration)


def _batch(reader: VideoReader, config: DataConfig, first: int, times: np.ndarray) -> Batch:
    """The views of some windows, `times` `[W, 2]`, the first of them being number `first`."""
    ranges = [frame_range(reader.index, start, end) for start, end in times.tolist()]
    indices = [start + view_indices(config, stop - start) for start, stop in ranges]
    errors = [""] * len(times)
    try:
        video = _views(reader, config, indices)
    except VideoError:
        # One by one, so that a damaged frame costs its own windows.
        video = []
        for number, wanted in enumerate(indices):
            try:
                video += _views(reader, config, [wanted])
            except VideoError as error:
                errors[number] = error.reason
                video.append(_black(config, num_views(config)))
    shown = np.stack(indices)
    seconds = reader.timestamps(shown.ravel()).reshape(shown.shape)
    return _columns(config, np.concatenate(video), first, times, shown, seconds, errors)


def _black(config: DataConfig, rows: int) -> np.ndarray:
    size = config.image_size
    return np.zeros((rows, config.num_frames, size, size, 3), np.uint8)


def _columns(
    config: DataConfig,
    video: np.ndarray,
    first: int,
    times: np.ndarray,
    indices: np.ndarray,
    seconds: np.ndarray,
    errors: Sequence[str],
) -> Batch:
    """A batch of all views of W windows; `indices` and `seconds` of their frames: `[W, S, T]`."""
    count = num_views(config)

    def per_view(x: np.ndarray) -> np.ndarray:
        return np.repeat(x, config.crops, axis=1).reshape(-1, config.num_frames)

    return {
        "video": video,
        "index": np.repeat(first + np.arange(len(times)), count),
        "start": np.repeat(times[:, 0], count),
        "end": np.repeat(times[:, 1], count),
        "frame_indices": per_view(indices),
        "timestamps": per_view(seconds),
        "valid": np.repeat(np.array([not error for error in errors]), count),
        "error": np.repeat(np.array(errors), count),
    }


def _views(
    reader: VideoReader, config: DataConfig, indices: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Views of windows whose frames are `indices` `[S, T]`, each uint8 `[S * K, T, H, W, 3]`."""
    resize = resizer(config.resize, config.image_size)
    # All at once, so that no frame is decoded twice.
    frames = reader.read(np.concatenate([wanted.ravel() for wanted in indices]), transform=resize)
    return [cut_views(config, part) for part in np.split(frames, len(indices))]
