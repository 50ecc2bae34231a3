"""Decoded frames of all clips of a small data set on disk: decoding happens once.

A cache is a folder with `frames.bin`, uint8 pixels of one clip after the other, and `clips.json`,
where each clip's pixels lie and what is known of it, or why it cannot be read; where sound is asked
for, `sound.bin` holds the waveforms, float32. Frames are as they were decoded, or scaled already as
whatever comes next would scale them: so what is made of them is the same with and without the
cache.
"""

import dataclasses
import functools
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import grain
import msgspec
import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.audio import SoundError
from internvideo_jax.data.decode.video import Transform, VideoError
from internvideo_jax.data.mapped import MappedArray
from internvideo_jax.data.sources.clips import RecordSource
from internvideo_jax.data.sources.source import ClipSource, SourceClip
from internvideo_jax.data.transforms.frames import resizer
from internvideo_jax.environment import usable_cpus
from internvideo_jax.files import atomic_directory, read_json
from internvideo_jax.preprocessing import Resize

MAX_CLIP_BYTES = 2**30
# Raised whenever the same file gives other samples than before: 2 since another filter resamples.
_SOUND_VERSION = 2
# Of millions of clips.
_MAX_LIST_BYTES = 2**31

_log = logging.getLogger(__name__)


# The arguments of a `VideoError`.
_Error = tuple[str, str, str, str]


class _CachedClip(msgspec.Struct, omit_defaults=True):
    """What `clips.json` states: where a clip's pixels lie and what it is, or its `VideoError`.

    Of its sound likewise: first and number of its samples, or why it has none or cannot be read.
    """

    start: int = 0
    shape: tuple[int, ...] = ()
    record: ClipRecord | None = None
    error: _Error | None = None
    sound: tuple[int, int] | None = None
    no_sound: _Error | None = None
    bad_sound: _Error | None = None


class CachedSource:
    """A source whose clips are decoded; makes the cache unless it is there.

    Args:
      source: the clips.
      cache_dir: folder for caches of any number of sources, which are told apart by their digests.
      size: of frames as they are kept, in pixels; None keeps their size.
      resize: how they reach it.
      sample_rate: samples per second of the sound, which is kept, too; None keeps none.

    Raises:
      ValueError: a clip with too many pixels to keep.
      OSError: the cache cannot be written.
    """

    def __init__(
        self,
        source: ClipSource,
        cache_dir: str | os.PathLike[str],
        size: int | None = None,
        resize: Resize = "bilinear_short_side",
        sample_rate: int | None = None,
    ):
        self._digest = source.digest()
        self._fingerprint = source.fingerprint()
        # Records may change (labels, captions) where the pixels do not.
        self._records = source.records if isinstance(source, RecordSource) else None
        kind = "-square" if resize == "bicubic_square" else ""
        scaled = f"-{size}{kind}" if size else ""
        heard = f"-{sample_rate}hz-{_SOUND_VERSION}" if sample_rate else ""
        folder = Path(cache_dir).absolute() / f"{self._digest[:16]}{scaled}{heard}"
        if not folder.is_dir():
            _write(source, folder, resizer(resize, size) if size else None, sample_rate)
        self._pixels = MappedArray(functools.partial(_map, folder / "frames.bin", "uint8"))
        self._samples = MappedArray(functools.partial(_map, folder / "sound.bin", "float32"))
        try:
            content = read_json(folder / "clips.json", max_bytes=_MAX_LIST_BYTES)
            self._clips = msgspec.convert(content, list[_CachedClip])
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder}: expected decoded clips, found {error}; delete the folder"
            ) from error

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> SourceClip:
        clip = self._clips[index]
        if clip.error is not None:
            raise VideoError(*clip.error)
        frames = self._pixels()[clip.start : clip.start + math.prod(clip.shape)]
        frames = frames.reshape(clip.shape)
        record = clip.record if self._records is None else self._records[index]
        assert record is not None
        return SourceClip(record, frames=frames, sound=self._sound(clip))

    def _sound(self, clip: _CachedClip) -> np.ndarray | VideoError | None:
        if clip.sound is not None:
            start, length = clip.sound
            return self._samples()[start : start + length]
        if clip.no_sound is not None:
            return SoundError(*clip.no_sound)
        return None if clip.bad_sound is None else VideoError(*clip.bad_sound)

    def digest(self) -> str:
        """That of the source."""
        return self._digest

    def fingerprint(self) -> str:
        """That of the source."""
        return self._fingerprint


def _map(file: Path, dtype: str) -> np.ndarray:
    is_empty = not file.stat().st_size
    return np.empty(0, dtype) if is_empty else np.memmap(file, dtype, "r")


def _write(
    source: ClipSource, folder: Path, scale: Transform | None, sample_rate: int | None
) -> None:
    _log.info("decoding %d clips into %s", len(source), folder)
    # Between two calls of the decoder a thread holds Python's lock, and of small clips these calls
    # are short: two threads on two CPUs read no more than one (docs/demo.md).
    num_threads = max(1, usable_cpus() // 2)
    decoded = (
        grain.MapDataset.range(len(source))
        .map(functools.partial(_decode, source=source, scale=scale, sample_rate=sample_rate))
        .to_iter_dataset(grain.ReadOptions(num_threads, prefetch_buffer_size=2 * num_threads))
    )
    try:
        with atomic_directory(folder) as temporary:
            temporary.mkdir()
            clips, pixels, samples = [], 0, 0
            with (
                (temporary / "frames.bin").open("wb") as frames_file,
                (temporary / "sound.bin").open("wb") as sound_file,
            ):
                for clip, frames, sound in decoded:
                    if frames is not None:
                        clip |= {"start": pixels, "shape": frames.shape}
                        pixels += frames.size
                        frames_file.write(frames.data)
                    if sound is not None:
                        clip |= {"sound": (samples, len(sound))}
                        samples += len(sound)
                        sound_file.write(sound.data)
                    clips.append(clip)
            (temporary / "clips.json").write_text(json.dumps(clips), encoding="utf-8")
    except OSError as error:
        # Where another process was faster, it has written the same.
        if not folder.is_dir():
            raise OSError(
                error.errno,
                f"cannot write the cache ({error.strerror}); unset cache_dir",
                str(folder),
            ) from error


def _decode(
    index: int, *, source: ClipSource, scale: Transform | None, sample_rate: int | None
) -> tuple[dict[str, Any], np.ndarray | None, np.ndarray | None]:
    """What the cache states about a clip, all its frames, and its sound."""
    try:
        clip = source[index]
        with clip.open() as reader:
            count, shape = reader.num_frames, reader.read([0], transform=scale).shape[1:]
            if count * math.prod(shape) > MAX_CLIP_BYTES:
                raise ValueError(
                    f"{clip.record.path}: expected a clip of at most {MAX_CLIP_BYTES >> 20} MiB"
                    f" decoded, found {count} frames of {shape[1]}x{shape[0]}; unset cache_dir,"
                    " or shrink the clips"
                )
            frames = np.ascontiguousarray(reader.read(range(count), transform=scale))
    except VideoError as error:
        return {"error": error.args}, None, None
    stated: dict[str, Any] = {"record": dataclasses.asdict(clip.record)}
    sound = None
    if sample_rate is not None:
        try:
            sound = np.ascontiguousarray(clip.waveform(sample_rate), np.float32)
        except SoundError as error:
            stated["no_sound"] = error.args
        except VideoError as error:
            stated["bad_sound"] = error.args
    return stated, frames, sound
