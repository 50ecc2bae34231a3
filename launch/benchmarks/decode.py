"""Sampling 8 frames of every clip of a folder beside a plain decord loop."""

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.data.annotations.folders import named_videos
from internvideo_jax.launch.arguments import UsageError
from internvideo_jax.launch.benchmarks.runner import (
    OURS,
    Row,
    Sample,
    interleave,
    say,
    sides,
    worker,
)

NUM_SYNTHETIC = 8
NUM_FRAMES = 8
SIZE = 224


def benchmark_decode(*, clips: Path | None, repeats: int) -> Row:
    """Times opening every clip, decoding 8 evenly spread frames and making 224x224 views of them.

    Each side runs on one CPU, with one thread, and reads files that are in the system's cache.

    Args:
      clips: folder to search for videos; None renders some.
      repeats: timed passes over all clips by each side, after one that is not counted.

    Raises:
      UsageError: no such folder.
      ValueError: a folder without videos, or a side cannot read a clip.
    """
    name = "decode/clips"
    with ExitStack() as stack:
        if clips is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="internvideo-decode-"))
            clips = Path(folder)
            render_clips(clips)
        elif not clips.is_dir():
            raise UsageError(f"--clips={clips}: expected a folder of videos, found none")
        files = named_videos([clips])
        digests = []
        runs: dict[str, Callable[[], Sample]] = {}
        for side in sides("decord", "pip install decord", "decord"):
            digest, runs[side] = stack.enter_context(worker(prepare, side, files, threads=1))
            digests.append(digest)
        row = interleave(name, runs, repeats, {"clips": len(files), "threads": 1})
    measured, details = row.to_json(), row.details
    details["clips_per_second"] = len(files) / measured["value"]
    speeds = [f"{details['clips_per_second']:.1f}"]
    if row.peer:
        details["peer_clips_per_second"] = len(files) / measured["peer_value"]
        # Where a file's timestamps leave room for opinions, the frames may be others.
        same = sum(ours == theirs for ours, theirs in zip(*digests, strict=True))
        details["clips_with_equal_views"] = same
        speeds.append(f"decord {details['peer_clips_per_second']:.1f}, equal views of {same} clips")
    say(f"{name}: {len(files)} clips, {'; '.join(speeds)} (clips per second on one CPU)")
    return row


def render_clips(folder: Path) -> None:
    """Writes a few H.264 clips of 3 seconds, 340x340 pixels."""
    from internvideo_jax.data.synthetic import scenes as synthetic

    motions: tuple[synthetic.Motion, ...] = ("left", "clockwise", "growing", "down")
    for i in range(NUM_SYNTHETIC):
        scene = synthetic.Scene("ring", "cyan", motions[i % 4], "gradient", 0.1 + 0.02 * i)
        synthetic.write_video(folder / f"{i}.mp4", synthetic.render(scene, 75, 340))


def prepare(side: str, clips: list[str]) -> tuple[Callable[[], None], list[str]]:
    """A side's pass over the clips, and a digest of its views of each."""
    load = our_views if side == OURS else decord_views

    def run() -> None:
        for clip in clips:
            load(clip)

    return run, [hashlib.sha256(load(clip).tobytes()).hexdigest() for clip in clips]


def our_views(path: str) -> np.ndarray:
    """Views of a clip's frames by this library's reader, uint8 `[8, 224, 224, 3]`."""
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.data.decode.clips import open_clip
    from internvideo_jax.data.transforms.frames import eval_frame
    from internvideo_jax.data.transforms.sampling import uniform_indices

    with open_clip(ClipRecord(path, path)) as clip:
        indices = uniform_indices(clip.num_frames, NUM_FRAMES)
        return clip.read(indices, transform=lambda frame: eval_frame(frame, SIZE))


def decord_views(path: str) -> np.ndarray:
    """The same as upstream's data sets read them, with the same sampling and the same views."""
    import decord

    from internvideo_jax.data.transforms.frames import eval_frame
    from internvideo_jax.data.transforms.sampling import uniform_indices

    video: Any = decord.VideoReader(path, num_threads=1)
    frames = video.get_batch(uniform_indices(len(video), NUM_FRAMES).tolist()).asnumpy()
    return np.stack([eval_frame(frame, SIZE) for frame in frames])
