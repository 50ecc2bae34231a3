"""`internvideo-jax index`: videos in, a file to search them by words out."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from internvideo_jax.files import readable_bytes
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference, named_clips
from internvideo_jax.launch.common.indexed_model import load_indexed_model
from internvideo_jax.launch.common.progress import Progress

if TYPE_CHECKING:
    from internvideo_jax.search.index_file import Index, IndexSettings

SUMMARY = "embed the windows of videos, so that `search` finds moments in them by words"

EPILOG = """\
Each video is cut into windows of --window seconds, --stride apart, of which the last ends with the
video, and a model that compares clips with texts embeds each. OUTPUT is one file, which holds the
vectors (four bytes for each of their numbers), the times and the paths; not the videos.

Where OUTPUT is there already, it is brought up to date: videos that are new or were changed (by
size and time of the last change) are read, those that are gone from the folders named are dropped,
all others stay. Options that are not given are then those that it was made with. An index is saved
every minute, and what was interrupted goes on with the same command. What cannot be read is
listed, left out and tried again the next time; the exit code is 1 then.

From 250,000 windows on, vectors lie in clusters, of which a search looks into the nearest ones.

examples:
  internvideo-jax index videos/ --output=videos.index
  internvideo-jax index videos/ --model=models/stage2-1b --window=4 --stride=2 --output=videos.index
  internvideo-jax index more/ film.mkv --output=videos.index
  internvideo-jax search videos.index "a dog in the snow"

In Python: internvideo_jax.search.updating.
"""

_WINDOW = 10.0


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 1 if any file or window failed."""
    args = _parser().parse_args(argv)
    from internvideo_jax.convert.library import DEMO
    from internvideo_jax.search.index_file import read_index, write_index
    from internvideo_jax.search.updating import compare, update

    videos = named_clips.named(args)
    if args.output.is_file():
        known = read_index(args.output, check_vectors=True)
        loaded = load_indexed_model(args, known.settings)
    else:
        arguments.new_output_file(args.output, "--output")
        known = None
        args.model = args.model or DEMO
        loaded = inference.load_model(args)
    settings = _settings(args, loaded, known)
    if known and (differing := known.settings.differences(settings)):
        raise arguments.UsageError(
            f"{args.output}: expected windows as the index has them, found others"
            f" ({'; '.join(differing)}); leave the options away, or name a new --output"
        )
    inference.announce_frames(loaded.model, settings.num_frames)
    todo = compare(known, videos, named_clips.folders(args))
    print(
        f"{len(todo.read)} videos to read, {len(todo.kept)} are in the index and stay,"
        f" {len(todo.gone)} are gone",
        file=sys.stderr,
    )
    started = time.perf_counter()
    latest: list[Index] = [known] if known else []

    def save(index: "Index") -> None:
        write_index(args.output, index)
        latest[:] = [index]

    progress = Progress(None, "window")
    with progress, inference.memory_errors(args.batch_size, settings.num_frames):
        num_new, failed = update(
            known,
            settings,
            todo,
            loaded.model,
            save,
            batch_size=args.batch_size,
            num_threads=args.num_threads,
            on_window=progress.update,
        )
    seconds = time.perf_counter() - started
    inference.print_failures([(inference.place(clip), clip.reason) for clip in failed])
    if not latest:
        raise arguments.UsageError(
            f"expected a video that can be read, found none of {len(videos)}; nothing is written"
        )
    (index,) = latest
    size = readable_bytes(args.output.stat().st_size)
    print(
        f"{num_new} new windows in {seconds:.1f} s: {len(index)} of {len(index.files)} videos"
        f" -> {args.output} ({size})"
    )
    return 1 if failed else 0


def _settings(
    args: argparse.Namespace, loaded: inference.Loaded, known: "Index | None"
) -> "IndexSettings":
    """How windows are made: as the options say, else as in the index, else by default."""
    from internvideo_jax.convert.library import DEMO
    from internvideo_jax.data.windows import Windows
    from internvideo_jax.models.video_vit import check_num_frames
    from internvideo_jax.search.index_file import IndexSettings

    before = known.settings if known else None
    window, stride = args.window, args.stride
    if window is None:
        window = before.window if before else _WINDOW
    if stride is None:
        stride = before.stride if before and args.window is None else window
    made_for = loaded.model.preprocessing.require_video().num_frames
    num_frames = args.frames or (before.num_frames if before else made_for)
    check_num_frames(loaded.model.module, num_frames)
    windows = Windows(window, stride)
    is_folder = os.path.exists(args.model) or args.model == DEMO
    return IndexSettings(
        model=os.path.abspath(loaded.directory) if is_folder else loaded.name,
        model_digest=loaded.digest,
        dtype=loaded.dtype,
        num_frames=num_frames,
        window=windows.length,
        stride=windows.stride,
    )


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("index", SUMMARY, EPILOG)
    named_clips.add_arguments(parser)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="INDEX",
        help="a new file, or an index to bring up to date",
    )
    as_before = "or as the index has it"
    inference.add_window_arguments(parser, f"{_WINDOW:g}, {as_before}")
    inference.add_arguments(parser, f"the demo's, {as_before}")
    return parser
