"""Writing shards of encoded clips; see `data.sources.shards` for what they hold."""

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter

from internvideo_jax import config as configs
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.audio import clip_sound
from internvideo_jax.data.decode.clips import image_names, open_clip
from internvideo_jax.data.decode.video import VideoError
from internvideo_jax.data.sources.shards import (
    INDEX,
    Content,
    Shard,
    ShardError,
    ShardIndex,
    encode_clip,
    sha256,
)
from internvideo_jax.data.sources.source import reason
from internvideo_jax.files import DiskFullError, atomic_directory, check_regular

# One clip is read at a time, and codecs leave nothing to compress.
WRITER_OPTIONS = "group_size:1,uncompressed"


class BrokenClip(NamedTuple):
    """A clip that cannot be read, and why."""

    record: ClipRecord
    reason: str


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write_shards` did: the index, and which clips it left out."""

    index: ShardIndex
    broken: tuple[BrokenClip, ...]


def write_shards(
    records: Sequence[ClipRecord],
    directory: str | os.PathLike[str],
    *,
    num_shards: int,
    workers: int = 1,
    skip_broken: bool = False,
    on_clip: Callable[[], object] = lambda: None,
) -> Written:
    """Writes clips to a new folder, in their order, about equally many to each shard.

    Every clip is opened, and its first and last frame decoded, from the bytes that are stored. The
    folder appears under its name when all is written.

    Args:
      records: the clips.
      directory: must not exist, or be empty.
      num_shards: files to write; at most one for each clip.
      workers: threads.
      skip_broken: whether clips that cannot be read are left out; otherwise they are an error.
      on_clip: called after each clip.

    Raises:
      ShardError: broken clips, all of them listed, or nothing to write.
      OSError: the disk is full (`files.DiskFullError`), or the folder cannot be written or is not
        empty.
    """
    target = temporary = Path(directory).absolute()
    try:
        with atomic_directory(target) as temporary:
            temporary.mkdir()
            written = _write_all(records, temporary, num_shards, workers, skip_broken, on_clip)
            text = json.dumps(configs.to_dict(written.index), indent=1) + "\n"
            (temporary / INDEX).write_text(text, encoding="utf-8")
    except DiskFullError:
        raise
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        # The temporary name means nothing to users.
        text = text.replace(str(temporary), str(target))
        raise OSError(f"{text}; name another folder") from error
    return written


def _write_all(
    records: Sequence[ClipRecord],
    directory: Path,
    num_shards: int,
    workers: int,
    skip_broken: bool,
    on_clip: Callable[[], object],
) -> Written:
    count = max(1, min(num_shards, len(records)))
    edges = [len(records) * i // count for i in range(count + 1)]
    names = [f"clips-{i:05}-of-{count:05}.array_record" for i in range(count)]

    is_stopped = threading.Event()

    def on_each() -> None:
        if is_stopped.is_set():
            raise CancelledError
        on_clip()

    def write(number: int) -> tuple[Shard | None, list[BrokenClip]]:
        some = records[edges[number] : edges[number + 1]]
        return _write_shard(some, directory / names[number], on_each)

    with ThreadPoolExecutor(workers) as pool:
        results = [pool.submit(write, number) for number in range(count)]
        try:
            for result in as_completed(results):
                # Raises the first error, whichever shard has it.
                result.result()
        except BaseException:
            is_stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    done = [result.result() for result in results]
    broken = [clip for _, clips in done for clip in clips]
    if broken and not skip_broken:
        raise ShardError(
            f"{describe_broken(broken)}\nmend them, or leave them out with --skip_broken"
        )
    shards = tuple(shard for shard, _ in done if shard is not None)
    if not shards:
        raise ShardError("expected clips that can be read, found none")
    return Written(ShardIndex(shards), tuple(broken))


def _write_shard(
    records: Sequence[ClipRecord], path: Path, on_clip: Callable[[], object]
) -> tuple[Shard | None, list[BrokenClip]]:
    """Writes one file; None if none of its clips can be read."""
    broken: list[BrokenClip] = []
    with _open_writer(path) as writer:
        for record in records:
            try:
                content = read_content(record)
                _check_readable(record, content)
            except (VideoError, OSError) as error:
                broken.append(BrokenClip(record, reason(error)))
            else:
                writer.write(encode_clip(record, content))
            on_clip()
    count = len(records) - len(broken)
    if not count:
        path.unlink()
        return None, broken
    return Shard(path.name, count, path.stat().st_size, sha256(path)), broken


def read_content(record: ClipRecord) -> Content:
    """The bytes of a clip's video file, or of its images.

    Raises:
      VideoError: a folder without images, or no regular file.
      OSError: a file cannot be read.
    """
    names = image_names(record)
    return tuple(map(_read_file, names)) if names else _read_file(record.path)


def _read_file(path: str) -> bytes:
    try:
        check_regular(path)
    except ValueError as error:
        found = str(error).rpartition("found ")[2]
        raise VideoError(path, "a regular file", found, "check the path") from None
    return Path(path).read_bytes()


def _check_readable(record: ClipRecord, content: Content) -> None:
    if record.media == "audio":
        clip_sound(record, 16_000, data=content)
        return
    with open_clip(record, data=content) as clip:
        clip.read([0, clip.num_frames - 1])


@contextlib.contextmanager
def _open_writer(path: Path) -> Iterator[ArrayRecordWriter]:
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    try:
        try:
            yield writer
        finally:
            writer.close()
    # What ArrayRecord raises whatever it is that goes wrong.
    except RuntimeError as error:
        text = str(error).partition("; writing ")[0]
        raise OSError(f"{path}: cannot write it: {text}") from error


def describe_broken(broken: Iterable[BrokenClip]) -> str:
    """One line for each clip that cannot be read."""
    clips = list(broken)
    lines = [f"  {clip.record.path}: {clip.reason}" for clip in clips]
    return "\n".join([f"{len(clips)} of the clips cannot be read:", *lines])
