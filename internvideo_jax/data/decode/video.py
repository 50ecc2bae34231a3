"""Frames of video files by number: frame k is the k-th one that a player shows.

Numbers come from an index of presentation timestamps, for which packets are read but not decoded;
a wanted frame is then decoded from the keyframe before it. Hence the same number names the same
picture whatever the container, the order of packets in it, or the number of decoding threads.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Self

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
    "Limits",
    "VideoError",
    "VideoIndex",
    "VideoReader",
    "check_clip_size",
    "check_numbers",
]

# FFmpeg's own default, which decord and OpenCV keep: the same bytes as theirs. Bicubic matters only
# where the picture changes its size in the middle of a file.
RGB_CONVERSION = Interpolation.BICUBIC

Transform = Callable[[np.ndarray], np.ndarray]


class VideoReader:
    """An open video file. Not thread-safe: give each thread its own.

    Pictures are converted from the colour space and range that the file states (BT.601 and limited
    range where it states none, as FFmpeg does) and turned upright; the shape of pixels is ignored.

    Args:
      path: the file; where `data` is given, what errors call it.
      limits: what reading may cost.
      data: the bytes of a file that is not on disk.

    Raises:
      VideoError: not a local, complete video file within the limits.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limits: Limits = DEFAULT_LIMITS,
        data: bytes | None = None,
    ):
        self._file = VideoFile(path, limits, data)
        self._reformatter = VideoReformatter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @functools.cached_property
    def index(self) -> VideoIndex:
        """The file's index, made on first use."""
        return make_index(self._file)

    @property
    def damaged_frames(self) -> int:
        """How many frames and packets the decoder called damaged in the last `read`.

        That is what FFmpeg notices; a frame predicted from a damaged one is not counted.
        """
        return len(self._file.damaged)

    def read(
        self, indices: Sequence[int] | np.ndarray, *, transform: Transform | None = None
    ) -> np.ndarray:
        """Decodes chosen frames; arguments, result and errors as `data.decode.clips.ClipReader`."""
        index = self.index
        indices = check_numbers(index.path, indices, index.num_frames)
        wanted: list[int] = np.unique(indices).tolist()
        if transform is None:
            check_clip_size(index.path, len(wanted), index.width, index.height, self._file.limits)
        self._file.start_clock()
        self._file.damaged.clear()
        decoded: dict[int, np.ndarray] = {}
        for number, frame in self._decode(wanted):
            upright = index.orientation.apply(self._to_rgb(frame))
            decoded[number] = upright if transform is None else transform(upright)
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
