"""Frames of video files by number: frame k is the k-th one that a player shows.

Numbers come from an index of presentation timestamps, for which packets are read but not decoded;
a wanted frame is then decoded from the keyframe before it. Hence the same number names the same
picture whatever the container, the order of packets in it, or the number of decoding threads.
"""

import abc
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from internvideo_jax.data.decode.video_file import (
    DEFAULT_LIMITS,
    Limits,
    VideoError,
    VideoFile,
    decoding_errors,
)
from internvideo_jax.data.decode.video_index import VideoIndex, make_index

__all__ = [
    "DEFAULT_LIMITS",
    "ClipReader",
    "Limits",
    "VideoError",
    "VideoIndex",
    "VideoReader",
    "check_clip_size",
    "check_numbers",
    "frame_range",
]

# FFmpeg's own default, which decord and OpenCV keep: the same bytes as theirs. Bicubic matters only
# where the picture changes its size in the middle of a file.
RGB_CONVERSION = Interpolation.BICUBIC

# Times come as decimal fractions, timestamps as multiples of a tick.
TIME_TOLERANCE = 1e-6

Transform = Callable[[np.ndarray], np.ndarray]


class ClipReader(contextlib.AbstractContextManager["ClipReader"]):
    """An open clip, to be used in a `with` block and by one thread.

    Attributes:
      num_frames: frames of the clip, at least 1.
      fps: mean frames per second; None where the clip has no times.
      damaged_frames: frames and packets that the decoder called damaged in the last `read`; a
        frame predicted from a damaged one is not counted.
    """

    num_frames: int
    fps: float | None = None
    damaged_frames: int = 0

    def timestamps(self, indices: np.ndarray) -> np.ndarray:
        """Seconds of chosen frames after the file's start, float64 `[T]`; NaN without times."""
        return np.full(len(indices), np.nan)

    @abc.abstractmethod
    def read(
        self, indices: Sequence[int] | np.ndarray, *, transform: Transform | None = None
    ) -> np.ndarray:
        """Decodes chosen frames.

        Args:
          indices: numbers of frames from 0, in any order, repetitions allowed.
          transform: applied to each frame, uint8 `[H, W, 3]`, as soon as it is decoded.

        Returns:
          uint8 `[T, H, W, 3]`, RGB, upright; or what the transform made of each, stacked.

        Raises:
          VideoError: a frame is damaged or missing, or the limits do not allow it.
          ValueError: a number outside the clip.
        """

    def close(self) -> None:
        """Closes the files, if there are any."""

    def __exit__(self, *error: object) -> None:
        self.close()


class VideoReader(ClipReader):
    """An open video file. Not thread-safe: give each thread its own.

    Pictures are converted from the colour space and range that the file states (BT.601 and limited
    range where it states none, as FFmpeg does) and turned upright; the shape of pixels is ignored.

    Args:
      path: the file; where `data` is given, what errors call it.
      limits: what reading may cost.
      data: the bytes of a file that is not on disk.
      start: the clip has the frames that are on screen at any time from here on, in seconds after
        the file's start; None is the first frame.
      end: and before this time; None is the file's end, as is any later time.

    Attributes:
      index: of the whole file.

    Raises:
      VideoError: not a local, complete video file within the limits, or it ends before `start`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limits: Limits = DEFAULT_LIMITS,
        data: bytes | None = None,
        start: float | None = None,
        end: float | None = None,
    ):
        self._file = VideoFile(path, limits, data)
        self._reformatter = VideoReformatter()
        try:
            with self._file.decoding():
                self.index = make_index(self._file)
            self._first, stop = frame_range(self.index, start, end)
        except BaseException:
            self.close()
            raise
        self.num_frames = stop - self._first
        index = self.index
        self.fps = index.num_frames / index.duration if index.duration > 0 else None

    def close(self) -> None:
        self._file.close()

    def timestamps(self, indices: np.ndarray) -> np.ndarray:
        return self.index.timestamps[indices + self._first]

    def read(
        self, indices: Sequence[int] | np.ndarray, *, transform: Transform | None = None
    ) -> np.ndarray:
        index = self.index
        indices = check_numbers(index.path, indices, self.num_frames) + self._first
        wanted: list[int] = np.unique(indices).tolist()
        if transform is None:
            check_clip_size(index.path, len(wanted), index.width, index.height, self._file.limits)
        self._file.damaged.clear()
        decoded: dict[int, np.ndarray] = {}
        with self._file.decoding():
            for number, frame in self._decode(wanted):
                upright = index.orientation.apply(self._to_rgb(frame))
                decoded[number] = upright if transform is None else transform(upright)
        self.damaged_frames = len(self._file.damaged)
        return np.stack([decoded[number] for number in indices.tolist()])

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yields each of the frames with the ascending numbers `wanted` once, in any order."""
        index = self.index
        decode = self._decode_by_count if index.pts is None else self._decode_by_time
        missing = dict.fromkeys(wanted)
        for number, frame in decode(missing):
            del missing[number]
            yield number, frame
        if missing:
            number = next(iter(missing))
            raise VideoError(
                index.path,
                f"{index.num_frames} frames that can be decoded",
                f"frame {number} (at {index.timestamps[number]:.3f} s) damaged",
                "copy the file again or leave it out",
            )

    def _decode_by_count(self, missing: dict[int, None]) -> Iterator[tuple[int, VideoFrame]]:
        self._file.rewind()
        number = 0
        for packet in self._file.packets("decoding it"):
            for frame in self._file.decode(packet):
                if number in missing:
                    yield number, frame
                number += 1
            if not missing:
                return

    def _decode_by_time(self, missing: dict[int, None]) -> Iterator[tuple[int, VideoFrame]]:
        pts, keyframes = self.index.pts, self.index.keyframes
        assert pts is not None
        numbers = {int(pts[number]): number for number in missing}
        groups: dict[int | None, set[int]] = {}
        for tick in numbers:
            before = int(np.searchsorted(keyframes, tick, side="right"))
            start = int(keyframes[before - 1]) if before else None
            groups.setdefault(start, set()).add(tick)
        for start, ticks in groups.items():
            for tick, frame in self._decode_run(start, ticks):
                yield numbers[tick], frame
        # Where a seek misses its keyframe, or a keyframe promises more than it holds (a stream of
        # gradual refreshes), the frames are still there for whoever decodes from the beginning.
        late = {int(pts[number]) for number in missing}
        for tick, frame in self._decode_run(None, late):
            yield numbers[tick], frame

    def _decode_run(self, start: int | None, ticks: set[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decodes from the keyframe at `start`, or the beginning, until all `ticks` have come."""
        remaining = set(ticks)
        if not remaining:
            return
        if start is None:
            self._file.rewind()
        else:
            self._file.seek(start)
        codec = self._file.stream.codec_context
        is_decoding = start is None
        for packet in self._file.packets("decoding it"):
            if packet is not None:
                is_decoding = is_decoding or (packet.is_keyframe and packet.pts == start)
                # Pictures neither wanted nor used by others need no decoding: 1.5 times as fast.
                is_needed = start is None or packet.pts in ticks
                codec.skip_frame = "DEFAULT" if is_needed else "NONREF"
            if not is_decoding:
                continue
            for frame in self._file.decode(packet):
                if frame.pts in remaining:
                    remaining.remove(frame.pts)
                    yield frame.pts, frame
            if not remaining:
                return

    def _to_rgb(self, frame: VideoFrame) -> np.ndarray:
        index = self.index
        width, height = index.width, index.height
        if index.orientation.transpose:
            width, height = height, width
        self._file.check_frame_size(frame.width, frame.height)
        with decoding_errors(index.path, "converting a frame to RGB"):
            rgb = self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format="rgb24",
                interpolation=RGB_CONVERSION,
                threads=1,
            )
            return rgb.to_ndarray()


def frame_range(
    index: VideoIndex, start: float | None = None, end: float | None = None
) -> tuple[int, int]:
    """Which frames of a video file are on screen at any time in [start, end).

    Args:
      index: of the file.
      start: seconds after the file's start; None is the first frame.
      end: seconds after the file's start; None is the file's end, as is any later time.

    Returns:
      Numbers of the first of them and of the one after the last.

    Raises:
      VideoError: the file ends before `start`.
    """
    times = index.timestamps
    first, stop = 0, len(times)
    if start is not None:
        if start > times[0] + index.duration - TIME_TOLERANCE:
            raise VideoError(
                index.path,
                f"a clip that begins before the file's end at {times[0] + index.duration:.3f} s",
                f"a start at {start:g} s",
                "correct the annotation",
            )
        shown = int(np.searchsorted(times, start + TIME_TOLERANCE, side="right"))
        first = max(shown - 1, 0)
    if end is not None:
        stop = max(int(np.searchsorted(times, end - TIME_TOLERANCE)), first + 1)
    return first, stop


def check_numbers(path: str, indices: Sequence[int] | np.ndarray, num_frames: int) -> np.ndarray:
    """Frame numbers as int64 `[T]`.

    Raises:
      ValueError: none, or one outside [0, num_frames); the message names `path`.
    """
    numbers = np.asarray(indices, np.int64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"expected a list of frame numbers, found shape {numbers.shape}")
    if numbers.min() < 0 or numbers.max() >= num_frames:
        raise ValueError(
            f"{path}: expected frame numbers from 0 to {num_frames - 1}, found {numbers.min()} to"
            f" {numbers.max()}; sample within the clip's length"
        )
    return numbers


def check_clip_size(path: str, count: int, width: int, height: int, limits: Limits) -> None:
    """Refuses more frames at once than the limits allow.

    Raises:
      VideoError: so many frames of that size.
    """
    if count * width * height > limits.max_clip_pixels:
        raise VideoError(
            path,
            f"a clip of at most {limits.max_clip_pixels} pixels",
            f"{count} frames of {width}x{height}",
            "read fewer at once, shrink them by a transform, or raise Limits.max_clip_pixels",
        )
