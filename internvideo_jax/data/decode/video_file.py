"""Opening video files that nobody has vouched for: what is accepted, within which limits."""

import contextlib
import dataclasses
import io
import math
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from internvideo_jax.data.decode.container_size import truncation
from internvideo_jax.data.decode.timeline import Place, Timeline

# Containers that hold their own data. Playlists, concatenations and image patterns, which make
# FFmpeg open further files or network addresses, are left out on purpose.
CONTAINERS = (
    "asf",
    "avi",
    "flv",
    "gif",
    "h264",
    "hevc",
    "m4v",
    "matroska",
    "mov",
    "mpeg",
    "mpegts",
    "mpegvideo",
    "ogg",
)
# For the sound alone; as videos, they are told apart from damaged files.
SOUND_CONTAINERS = ("aac", "flac", "mp3", "wav")

# Containers without an index, in which any byte is a place to go on from.
_BYTE_ADDRESSED = ("mpeg", "mpegts")
# Of one track, before which any other film of the file has had its second packet.
_ENOUGH_PACKETS = 100


class VideoError(ValueError):
    """A video file that cannot serve; says what was expected, what was found and what to do.

    Attributes:
      path: the file.
      expected: what it should have been.
      found: what it is.
      advice: what to do about it.
    """

    def __init__(self, path: str | os.PathLike[str], expected: str, found: str, advice: str):
        # All arguments go to the base class, so that the error survives pickling.
        super().__init__(os.fspath(path), expected, found, advice)
        self.path = os.fspath(path)
        self.expected = expected
        self.found = found
        self.advice = advice

    @property
    def reason(self) -> str:
        """The message without the path."""
        return f"expected {self.expected}, found {self.found}; {self.advice}"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What reading one file may cost; beyond it the file is refused with a `VideoError`.

    Attributes:
      open_timeout: seconds for recognising the file.
      read_timeout: seconds for one packet.
      deadline: seconds for one whole call (indexing, or reading frames), checked at every packet.
      max_frames: frames in a file.
      max_frame_pixels: pixels of one frame; the default admits 8K. A frame takes some 13 bytes per
        pixel while it is decoded; of those beyond 4K, all threads together decode one at a time.
      max_clip_pixels: pixels of all frames that one call holds untransformed.
      max_samples: samples of a file's sound, at the rate that is asked for.
    """

    open_timeout: float = 10.0
    read_timeout: float = 10.0
    deadline: float = 120.0
    max_frames: int = 2_000_000
    max_frame_pixels: int = 36 * 2**20
    max_clip_pixels: int = 2**30
    max_samples: int = 2**28


DEFAULT_LIMITS = Limits()

# 4K, whose frames threads may decode side by side.
_LARGE_PIXELS = 2**23
_large_pictures = threading.RLock()


def turn_to_decode(pixels: int) -> contextlib.AbstractContextManager[object]:
    """A block for decoding pictures of so many pixels: large ones are in it one after the other."""
    return _large_pictures if pixels > _LARGE_PIXELS else contextlib.nullcontext()


class VideoFile:
    """An open local file and its main video stream.

    That is a film rather than a still (cover art is none of both), then the default track, then the
    largest picture, then the first.

    Attributes:
      path: the file; where `data` holds its bytes, what errors call it.
      limits: what reading it may cost.
      container: the demuxer; replaced by `rewind`, so never keep a reference.
      stream: the main video stream; replaced likewise.
      damaged: timestamps of packets that could not be decoded and of frames with damaged parts.

    Raises:
      VideoError: not a complete, regular file with a decodable video stream within the limits.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        limits: Limits,
        data: bytes | None = None,
    ):
        self.path = os.fspath(path)
        self.limits = limits
        self._data = data
        self._track: int | None = None
        self._keyframes: Mapping[int, Place] = {}
        self.container: InputContainer
        self.stream: VideoStream
        self.damaged: set[int | None] = set()
        self.start_clock()
        self._open()

    def close(self) -> None:
        """Closes the file."""
        self.container.close()

    def start_clock(self) -> None:
        """Starts the time that `limits.deadline` allows."""
        self._end = time.monotonic() + self.limits.deadline

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """A block for all decoding, which starts the clock: large pictures are decoded in turn, and
        leave nothing in memory when it ends."""
        with turn_to_decode(self._pixels):
            self.start_clock()
            yield
            if self._pixels > _LARGE_PIXELS:
                self.rewind()

    def rewind(self) -> None:
        """Goes back to the first packet, as if just opened."""
        if not self._is_fresh:
            self.container.close()
            self._open()

    def join(self, keyframes: Mapping[int, Place]) -> None:
        """Gives packets from here on timestamps that never begin anew (`Timeline`).

        Args:
          keyframes: where decoding can start, by such timestamps; at least one.
        """
        self._keyframes = keyframes

    def seek(self, tick: int) -> None:
        """Goes to a packet at or before a timestamp: to the first one if the format cannot seek."""
        if self._is_fresh:
            return
        try:
            if not self._keyframes:
                self.container.seek(tick, stream=self.stream)
                return
            position, shift = self._keyframes[tick]
            if position is not None and self.container.format.name in _BYTE_ADDRESSED:
                self.container.seek(position, unsupported_byte_offset=True)
                self._timeline = Timeline(shift)
                return
        except av.error.FFmpegError:
            pass
        self.rewind()

    def packets(self, doing: str) -> Iterator["Packet[VideoStream] | None"]:
        """The video's packets from here on, then None.

        Raises:
          VideoError: the file cannot be read on, or time is over.
        """
        self._is_fresh = False
        with decoding_errors(self.path, doing):
            # PyAV ends with an IndexError where streams appear in the middle of a file.
            with contextlib.suppress(IndexError):
                for packet in self.container.demux(self.stream):
                    check_clock(self.path, doing, self._end, self.limits)
                    if packet.size:
                        if self._keyframes:
                            self._shift(packet)
                        yield packet
        yield None

    def decode(self, packet: "Packet[VideoStream] | None") -> list[VideoFrame]:
        """The frames that a packet completes, or that are left at the end (None).

        As in players, a damaged packet costs its own frames: whoever wants one of them finds out
        that it is missing. A frame with damaged parts is shown. `damaged` notes both.
        """
        try:
            frames = self.stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            self.damaged.add(packet.pts if packet is not None else None)
            return []
        self.damaged.update(frame.pts for frame in frames if frame.is_corrupt)
        return frames

    def _shift(self, packet: "Packet[VideoStream]") -> None:
        shift = self._timeline.shift(packet)
        packet.pts = None if packet.pts is None else packet.pts + shift
        packet.dts = None if packet.dts is None else packet.dts + shift

    def check_frame_size(self, width: int, height: int) -> None:
        """Refuses pictures beyond the limit."""
        if width * height > self.limits.max_frame_pixels:
            raise VideoError(
                self.path,
                f"frames of at most {self.limits.max_frame_pixels} pixels",
                f"{width}x{height}",
                "scale it down or raise Limits.max_frame_pixels",
            )

    @property
    def _pixels(self) -> int:
        """Pixels of a picture; where the header does not tell, as many as there may be."""
        return self.stream.width * self.stream.height or self.limits.max_frame_pixels

    def _open(self) -> None:
        self.container = open_container(self.path, self.limits, self._data)
        try:
            if self._track is None:
                self._track = self._choose_track()
            self.stream = cast(VideoStream, self.container.streams[self._track])
            self.check_frame_size(self.stream.width, self.stream.height)
            codec = self.stream.codec_context
            # What its header does not announce comes as a surprise to no turn.
            limit = self.limits.max_frame_pixels
            if self._pixels <= _LARGE_PIXELS:
                limit = min(limit, _LARGE_PIXELS)
            codec.options = {"max_pixels": str(limit)}
            codec.thread_count = 1
        except BaseException:
            self.container.close()
            raise
        self._timeline = Timeline()
        self._is_fresh = True

    def _choose_track(self) -> int:
        """Index of the film among the tracks; the container is as good as new afterwards."""
        tracks = _pictures(self.path, self.container)
        if len(tracks) == 1:
            return tracks[0].index
        films = self._films(tracks)
        chosen = max(tracks, key=lambda track: (track.index in films, *_rank(track))).index
        self.container.close()
        self.container = open_container(self.path, self.limits, self._data)
        return chosen

    def _films(self, tracks: Sequence[VideoStream]) -> set[int]:
        """Indices of those with more than one packet among the first of the file."""
        counts = dict.fromkeys((track.index for track in tracks), 0)
        doing = "looking for its main track"
        with decoding_errors(self.path, doing), contextlib.suppress(IndexError):
            for packet in self.container.demux(tracks):
                check_clock(self.path, doing, self._end, self.limits)
                counts[packet.stream.index] += bool(packet.size)
                # Packets of all tracks lie in the order of their times.
                if min(counts.values()) > 1 or max(counts.values()) >= _ENOUGH_PACKETS:
                    break
        stills = Disposition.timed_thumbnails | Disposition.still_image
        return {t.index for t in tracks if counts[t.index] > 1 and not t.disposition & stills}


def check_clock(path: str, doing: str, end: float, limits: Limits) -> None:
    """Refuses to go on after `end`, in seconds of `time.monotonic`."""
    if time.monotonic() > end:
        raise VideoError(
            path,
            f"{doing} to take at most {limits.deadline:g} s",
            "more data than that",
            "cut the file into pieces or convert it, or, in Python, raise Limits.deadline",
        )


def open_container(path: str, limits: Limits, data: bytes | None = None) -> InputContainer:
    """Opens a media file without letting its name or contents open anything else.

    Args:
      path: the file; where `data` is given, what errors call it.
      limits: what reading it may cost.
      data: the bytes of a file that is not on disk.

    Raises:
      VideoError: not a complete, regular file in a known container.
    """
    if data is None:
        _check_on_disk(path)
    else:
        _check_in_memory(path, data)
    options = {
        # With the prefix below, these two keep names and contents from opening anything else.
        "format_whitelist": ",".join(CONTAINERS + SOUND_CONTAINERS),
        "protocol_whitelist": "file",
        # Made-up timestamps (PyAV asks for them) would be taken for real ones: AVI stores
        # none, and those made up for its B-frames are in decoding order.
        "fflags": "-genpts",
        # Recognising a file may decode some of it, in any number of threads.
        "max_pixels": str(min(limits.max_frame_pixels, _LARGE_PIXELS)),
    }
    kinds = f"a video file (of {', '.join(CONTAINERS)})"
    with decoding_errors(path, "opening it", expected=kinds):
        return av.open(
            "file:" + os.path.abspath(path) if data is None else io.BytesIO(data),
            mode="r",
            options=options,
            metadata_errors="replace",
            timeout=(limits.open_timeout, limits.read_timeout),
        )


@contextlib.contextmanager
def decoding_errors(
    path: str, doing: str, expected: str = "an undamaged video file"
) -> Iterator[None]:
    """Turns whatever FFmpeg raises inside the block into a `VideoError`."""
    try:
        yield
    except av.error.ExitError as error:
        raise VideoError(
            path,
            f"{doing} without long pauses",
            "no data in time",
            "copy it to a faster disk, or, in Python, raise the timeouts in Limits",
        ) from error
    except av.error.FFmpegError as error:
        raise VideoError(
            path,
            expected,
            f"an error while {doing}: {error.strerror}",
            "see what a player makes of it, then convert it or leave it out",
        ) from error


def _check_on_disk(path: str) -> None:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            found = "a folder"
        elif not stat.S_ISREG(status.st_mode):
            found = "a device, pipe or socket, which may never end"
        elif status.st_size == 0:
            found = "an empty file"
        else:
            with Path(path).open("rb") as file:
                _check_size(path, file, status.st_size)
            return
    except FileNotFoundError as error:
        raise VideoError(path, "a video file", str(error.strerror), "check the path") from None
    except OSError as error:
        found = error.strerror or str(error)
    raise _incomplete(path, found)


def _check_in_memory(path: str, data: bytes) -> None:
    if not data:
        raise _incomplete(path, "no bytes")
    _check_size(path, io.BytesIO(data), len(data))


def _check_size(path: str, file: BinaryIO, size: int) -> None:
    found = truncation(file, size)
    if found is not None:
        raise _incomplete(path, f"a truncated one: {found}")


def _incomplete(path: str, found: str) -> VideoError:
    return VideoError(path, "a complete video file", found, "check the path, or copy it again")


def _pictures(path: str, container: InputContainer) -> list[VideoStream]:
    """The streams of pictures that can be decoded and are no cover art."""
    pictures = [s for s in container.streams.video if not _is_cover_art(s)]
    if not pictures:
        found = ", ".join(_describe(s) for s in container.streams) or "no stream at all"
        raise VideoError(
            path, "a video stream", f"only {found}", "pass a file with moving pictures"
        )
    decodable = [s for s in pictures if s.codec_context is not None]
    if not decodable:
        raise VideoError(path, "a known video codec", "one without a decoder", "convert the file")
    return decodable


def _rank(track: VideoStream) -> tuple[bool, float, int]:
    is_default = bool(track.disposition & Disposition.default)
    # Of a picture beyond 4K, opening the file may leave the size unknown.
    return is_default, track.width * track.height or math.inf, -track.index


def _is_cover_art(stream: Stream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _describe(stream: Stream) -> str:
    if _is_cover_art(stream):
        return "cover art"
    codec = stream.codec_context
    return f"{stream.type} {codec.name}" if codec is not None else stream.type
