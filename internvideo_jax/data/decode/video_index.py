"""The index of a video file: which frames it has, when they are shown, where decoding can start."""

import dataclasses
import math
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from internvideo_jax.data.decode.timeline import Place, Timeline
from internvideo_jax.data.decode.video_file import VideoError, VideoFile

# The largest picture buffer of H.264 and HEVC: no frame is shown more places than this before or
# after its place in the file, unless the timestamps themselves jump.
MAX_REORDERING = 16


class Orientation(NamedTuple):
    """How stored pictures become upright: transpose first, then flip."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Turns a stored picture `[H, W, 3]` upright."""
        if self.transpose:
            frame = frame.transpose(1, 0, 2)
        frame = frame[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        return np.ascontiguousarray(frame)


@dataclasses.dataclass(frozen=True, eq=False)
class VideoIndex:
    """What a file holds; enough to choose frames and to find them again.

    Attributes:
      path: the file.
      container: FFmpeg's name of the container format.
      codec: FFmpeg's name of the decoder.
      timestamps: seconds of each frame after the file's start, float64 `[N]`, ascending.
      duration: seconds from the first frame to the end of the last.
      width: of the upright picture, in pixels.
      height: of the upright picture, in pixels.
      orientation: how stored pictures become upright.
      pts: presentation timestamps of the frames in the stream's ticks, int64 `[N]`, strictly
        ascending; None where the file's timestamps do not tell its frames apart, which then can
        only be counted by decoding from the beginning.
      keyframes: presentation timestamps of the packets that decoding can start at, ascending.
    """

    path: str
    container: str
    codec: str
    timestamps: np.ndarray
    duration: float
    width: int
    height: int
    orientation: Orientation
    pts: np.ndarray | None
    keyframes: np.ndarray

    @property
    def num_frames(self) -> int:
        """N, the number of frames."""
        return len(self.timestamps)


@dataclasses.dataclass(frozen=True)
class _Listing:
    """Packets as the demuxer gives them, in file order, and the first decoded frame.

    Attributes:
      pts: timestamps.
      shifts: what `Timeline` adds to them.
      keyframes: timestamps of the packets that decoding can start at, and where these lie.
      last_duration: of the last packet, in ticks.
      first: the frame.
    """

    pts: list[int | None]
    shifts: list[int]
    keyframes: list[tuple[int, Place]]
    last_duration: int
    first: VideoFrame

    def shifted_pts(self) -> list[int | None]:
        """Timestamps that never begin anew."""
        return [
            None if tick is None else tick + shift
            for tick, shift in zip(self.pts, self.shifts, strict=True)
        ]


def make_index(file: VideoFile) -> VideoIndex:
    """Lists the frames of an open file; reads all of it, decodes one frame.

    Where timestamps begin anew, those of the index and of the file's packets go on (`Timeline`).
    Only where they are missing, repeat, or jump for other reasons, all frames are decoded to count
    them.

    Raises:
      VideoError: there are no frames, or more than the limits allow.
    """
    file.rewind()
    listing = _list_packets(file)
    first = listing.first
    time_base = float(file.stream.time_base or 1)
    codec, container = file.stream.codec_context.name, file.container.format.name
    start = file.container.start_time
    ticks, pts = np.empty(0), None
    keyframes = [tick for tick, _ in listing.keyframes]
    given = listing.pts
    if first.pts is not None and not _name_frames(given) and any(listing.shifts):
        given = listing.shifted_pts()
        keyframes = [tick + place.shift for tick, place in listing.keyframes]
        file.join({tick + place.shift: place for tick, place in listing.keyframes})
    if first.pts is not None and _name_frames(given):
        # Pictures that need data from before the file's first keyframe are never shown.
        pts = np.unique([tick for tick in given if tick is not None and tick >= first.pts])
        ticks = pts
    else:
        ticks = _count_frames(file)
    seconds = ticks * time_base
    timestamps = seconds - (seconds[0] if start is None else start / av.time_base)
    typical = float(np.median(np.diff(timestamps))) if len(timestamps) > 1 else 0.0
    orientation = _orientation(first)
    size = (first.width, first.height)
    width, height = reversed(size) if orientation.transpose else size
    return VideoIndex(
        path=file.path,
        container=container,
        codec=codec,
        timestamps=timestamps,
        duration=float(np.ptp(timestamps)) + (listing.last_duration * time_base or typical),
        width=width,
        height=height,
        orientation=orientation,
        pts=pts,
        keyframes=np.unique(np.array(keyframes, np.int64)),
    )


def _list_packets(file: VideoFile) -> _Listing:
    pts: list[int | None] = []
    shifts: list[int] = []
    keyframes: list[tuple[int, Place]] = []
    timeline = Timeline()
    first: VideoFrame | None = None
    last_duration = 0
    codec = file.stream.codec_context.name
    for packet in file.packets("indexing it"):
        if first is None:
            first = next(iter(file.decode(packet)), None)
        if packet is None or _is_hidden(packet, codec):
            continue
        shift = timeline.shift(packet)
        if packet.is_keyframe and packet.pts is not None:
            position = packet.pos if packet.pos is not None and packet.pos >= 0 else None
            keyframes.append((packet.pts, Place(position, shift)))
        # Packets to discard lie outside the edit list: decoded, but never shown.
        if not packet.is_discard:
            pts.append(packet.pts)
            shifts.append(shift)
            last_duration = packet.duration or last_duration
            _check_count(file, len(pts))
    if first is None:
        raise VideoError(
            file.path,
            "pictures",
            f"{len(pts)} packets of {codec}, none of which can be decoded into frames of at most"
            f" {file.limits.max_frame_pixels} pixels",
            "copy or convert it again, or leave it out",
        )
    file.check_frame_size(first.width, first.height)
    return _Listing(pts, shifts, keyframes, last_duration, first)


def _is_hidden(packet: "Packet[VideoStream]", codec: str) -> bool:
    """Whether a packet only updates a reference; VP8 alone stores such pictures on their own."""
    return codec == "vp8" and not memoryview(packet)[0] & 0x10


def _name_frames(pts: list[int | None]) -> bool:
    """Whether timestamps, in file order, tell frames apart: all known, all different, no jumps."""
    known = [tick for tick in pts if tick is not None]
    if not known or len(set(known)) < len(pts):
        return False
    moved = np.argsort(np.argsort(known)) - np.arange(len(known))
    return int(np.abs(moved).max()) <= MAX_REORDERING


def _count_frames(file: VideoFile) -> np.ndarray:
    """Ticks of all frames, found by decoding them; evenly spaced where the file states none."""
    file.rewind()
    pts: list[int | None] = []
    for packet in file.packets("counting its frames"):
        pts += [frame.pts for frame in file.decode(packet)]
        _check_count(file, len(pts))
    known = np.array([tick for tick in pts if tick is not None], np.int64)
    if len(known) == len(pts) and np.all(np.diff(known) > 0):
        return known
    rate = file.stream.average_rate or file.stream.guessed_rate or Fraction(25)
    spacing = 1 / float(rate * (file.stream.time_base or 1))
    return (file.stream.start_time or 0) + np.arange(len(pts)) * spacing


def _check_count(file: VideoFile, count: int) -> None:
    if count > file.limits.max_frames:
        raise VideoError(
            file.path,
            f"at most {file.limits.max_frames} frames",
            "more",
            "cut the file into pieces or raise Limits.max_frames",
        )


def _orientation(frame: VideoFrame) -> Orientation:
    """The axis-aligned orientation nearest to a frame's display matrix."""
    a, b, c, d = _display_matrix(frame)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def _display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """(a, b, c, d): the stored pixel (x, y) is shown at (a x + c y, b x + d y), up to a shift."""
    try:
        data = frame.side_data["DISPLAYMATRIX"]  # type: ignore[typeddict-item]  # wrong stubs
        matrix = np.frombuffer(bytes(data), np.int32)
    except KeyError:
        return 1.0, 0.0, 0.0, 1.0
    except ValueError:
        # PyAV gives up the whole list where a frame carries a kind of side data unknown to it.
        turn = -math.radians(frame.rotation)
        return math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)
    return float(matrix[0]), float(matrix[1]), float(matrix[3]), float(matrix[4])
