"""Sampling 8 frames of every clip of a folder beside a plain decord loop."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from internvideo_jax.launch.arguments import UsageError
from internvideo_jax.launch.benchmarks.processes import Say, Worker, interleave, sides
from internvideo_jax.launch.benchmarks.report import Row
from internvideo_jax.launch.extract import find_videos

NUM_SYNTHETIC = 8


def benchmark_decode(name: str, *, clips: Path | None, repeats: int, say: Say) -> Row:
    """Times opening every clip, decoding 8 evenly spread frames and making 224x224 views of them.

    Each side runs on one CPU, with one thread, and reads files that are in the system's cache.

    Args:
      name: of the row.
      clips: folder to search for videos; None renders some.
      repeats: timed passes over all clips by each side, after one that is not counted.
      say: called with a line of progress.

    Raises:
      UsageError: a folder without videos.
      ChildProcessError: a side cannot read a clip.
    """
    with ExitStack() as stack:
        if clips is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="internvideo-decode-"))
            clips = Path(folder)
            render_clips(clips)
        elif not clips.is_dir():
            raise UsageError(f"--clips={clips}: expected a folder of videos, found none")
        files = find_videos([str(clips)])
        workers = {
            side: stack.enter_context(Worker("decode_worker", side, *files))
            for side in sides("decord", "decord", "pip install decord", say)
        }
        digests = [worker.answer()["digests"] for worker in workers.values()]
        runs = {side: worker.measure for side, worker in workers.items()}
        row = interleave(name, runs, repeats, say, {"clips": len(files), "threads": 1})
    details = row.details
    details["clips_per_second"] = len(files) / row.value
    speeds = [f"{details['clips_per_second']:.1f}"]
    if row.peer:
        details["peer_clips_per_second"] = len(files) / row.peer_value
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
