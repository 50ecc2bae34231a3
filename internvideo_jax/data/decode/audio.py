"""The sound of video and audio files as one waveform."""

import contextlib
import itertools
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.clips import image_names
from internvideo_jax.data.decode.video_file import (
    DEFAULT_LIMITS,
    Limits,
    VideoError,
    check_clock,
    decoding_errors,
    open_container,
)
from internvideo_jax.data.transforms.resampling import resampled

# Containers round timestamps to milliseconds or to the video's ticks: only longer gaps are meant.
GAP_TOLERANCE = 0.05
# Decoders need what precedes: AAC the frame before, MP3 up to nine (a third of a second at 16 kHz).
_LEAD = 1.0
# From below telephones to the highest of sound cards: at low rates resampling makes many samples of
# few, at high ones it takes memory.
_MIN_RATE, _MAX_RATE = 1_000, 768_000


class SoundError(VideoError):
    """A clip without sound."""


def clip_sound(
    record: ClipRecord,
    sample_rate: int,
    *,
    data: bytes | Sequence[bytes] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> np.ndarray:
    """The sound of a clip between its start and its end; arguments and errors as `read_audio`.

    Args:
      record: the clip.
      sample_rate: samples per second.
      data: the bytes of its file or images, if they are not to be read from `record.path`.
      limits: what reading may cost.

    Raises:
      SoundError: it has none.
      VideoError: it cannot be read.
    """
    if not isinstance(data, bytes | None) or image_names(record, limits=limits):
        raise SoundError(record.path, "sound", "images", "leave it out, or set missing_audio")
    start, end = record.start or 0.0, record.end
    return read_audio(record.path, sample_rate, start=start, end=end, data=data, limits=limits)


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int = 16_000,
    *,
    start: float = 0.0,
    end: float | None = None,
    data: bytes | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> np.ndarray:
    """Decodes the sound of a video or audio file.

    The first sample is at the file's start, time 0 of its frames' timestamps. What has a negative
    timestamp (AAC: 1,024 priming samples of the encoder) is left out, and silence stands where a
    stream begins later, has gaps or damaged packets. Of several streams, the default one is read,
    or the first; its channels are averaged.

    Args:
      path: the file; where `data` is given, what errors call it.
      sample_rate: samples per second of the result, whatever the file has.
      start: seconds after the file's start where the result begins.
      end: seconds after the file's start where it ends at the latest; None is the file's end.
      data: the bytes of a file that is not on disk.
      limits: what reading may cost.

    Returns:
      float32 `[S]` in [-1, 1].

    Raises:
      SoundError: a media file without an audio stream.
      VideoError: not a local, complete media file with decodable sound there within the limits.
      ValueError: a useless sample rate.
    """
    path = os.fspath(path)
    if sample_rate < 1:
        raise ValueError(f"expected at least 1 sample per second, found {sample_rate}")
    with open_container(path, limits, data) as container:
        stream = _audio_stream(path, container)
        source = _Source(path, stream, limits, sample_rate, start, end)
        pieces = list(source.resampled(container))
        if end is None and container.format.name == "flac":
            # Its header alone tells, and only of the samples.
            _check_length(path, container, start + source.position)
    if not pieces:
        raise VideoError(
            path,
            f"sound from {start:g} s on",
            "an audio stream that cannot be decoded, or ends before it",
            "correct the annotation, convert the file or leave it out",
        )
    length = None if end is None else max(round((end - start) * sample_rate), 1)
    samples = np.concatenate(pieces)[:length]
    # Floating-point files may hold anything.
    np.nan_to_num(samples, copy=False, nan=0.0)
    return np.clip(samples, -1, 1, out=samples)


class _Source:
    """An audio stream on its way to a waveform.

    Attributes:
      position: seconds of sound so far, from `start` on.
    """

    def __init__(
        self,
        path: str,
        stream: AudioStream,
        limits: Limits,
        sample_rate: int,
        start: float,
        end: float | None,
    ):
        self._start = start
        self._length = math.inf if end is None else end - start
        self._path = path
        self._stream = stream
        self._limits = limits
        self._sample_rate = sample_rate
        self._end = time.monotonic() + limits.deadline
        self.position = 0.0

    def resampled(self, container: InputContainer) -> Iterator[np.ndarray]:
        """The waveform in pieces, float32, at the rate that is asked for."""
        for rate, pieces in itertools.groupby(self._aligned(container), key=itemgetter(0)):
            joined = _joined((samples for _, samples in pieces), rate)
            yield from resampled(joined, rate, self._sample_rate)

    def _aligned(self, container: InputContainer) -> Iterator[tuple[int, np.ndarray]]:
        """Sample rates and mono samples of all frames, gaps filled, from `start` on."""
        began = container.start_time
        zero = None if began is None else max(began / av.time_base, 0.0)
        if zero is not None and self._start > _LEAD:
            # Where the format cannot seek, everything before is decoded and left out.
            with contextlib.suppress(av.error.FFmpegError):
                container.seek(round((zero + self._start - _LEAD) * av.time_base))
        for frame in self._frames(container):
            if self.position >= self._length:
                return
            rate, samples = frame.sample_rate, _mono(frame)
            if not _MIN_RATE <= rate <= _MAX_RATE:
                raise VideoError(
                    self._path,
                    f"sound of {_MIN_RATE:,} to {_MAX_RATE:,} samples per second",
                    f"{rate:,}",
                    "check the file, or convert it",
                )
            if frame.pts is not None and frame.time_base is not None:
                seconds = float(frame.pts * frame.time_base)
                zero = seconds if zero is None else zero
                late = seconds - zero - self._start - self.position
                if late < 0 and self.position == 0:
                    samples = samples[round(-late * rate) :]
                elif late > GAP_TOLERANCE:
                    yield from self._silence(late, rate)
            if len(samples):
                self._advance(len(samples) / rate)
                yield rate, samples

    def _silence(self, seconds: float, rate: int) -> Iterator[tuple[int, np.ndarray]]:
        self._advance(seconds)
        left = round(seconds * rate)
        while left:
            length = min(left, rate)
            yield rate, np.zeros(length, np.float32)
            left -= length

    def _advance(self, seconds: float) -> None:
        self.position += seconds
        limit = self._limits.max_samples / self._sample_rate
        if self.position > limit:
            raise VideoError(
                self._path,
                f"at most {limit:g} s of sound",
                "more",
                "cut the file into pieces or raise Limits.max_samples",
            )

    def _frames(self, container: InputContainer) -> Iterator[AudioFrame]:
        with decoding_errors(self._path, "decoding its sound"), contextlib.suppress(IndexError):
            for packet in container.demux(self._stream):
                check_clock(self._path, "decoding its sound", self._end, self._limits)
                # As in players, a damaged packet costs its own frames.
                with contextlib.suppress(av.error.FFmpegError):
                    yield from packet.decode()


def _check_length(path: str, container: InputContainer, seconds: float) -> None:
    announced = (container.duration or 0) / av.time_base
    if seconds < announced - 0.001:
        raise VideoError(
            path,
            "a complete file of sound",
            f"a truncated one: its header announces {announced:.2f} s, it has {seconds:.2f} s",
            "check the path, or copy it again",
        )


def _audio_stream(path: str, container: InputContainer) -> AudioStream:
    streams = container.streams.audio
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise SoundError(
            path, "an audio stream", f"no audio stream (only {kinds})", "pass a file with sound"
        )
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoError(path, "a known audio codec", "one without a decoder", "convert the file")
    return max(decodable, key=lambda stream: bool(stream.disposition & Disposition.default))


def _mono(frame: AudioFrame) -> np.ndarray:
    """The mean of a frame's channels, float32 `[S]`; integers are scaled to [-1, 1)."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    mean = samples.mean(axis=0, dtype=np.float64)
    if samples.dtype.kind in "iu":
        half = 2 ** (8 * samples.dtype.itemsize - 1)
        mean = mean / half - (samples.dtype.kind == "u")
    return mean.astype(np.float32)


def _joined(pieces: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """The same samples in pieces of at least some length, the last one excepted.

    Frames have a fifteenth of a second, and a call for each costs as much as decoding it.
    """
    waiting: list[np.ndarray] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= length:
            yield np.concatenate(waiting)
            waiting.clear()
    if waiting:
        yield np.concatenate(waiting)
