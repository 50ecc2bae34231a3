"""`internvideo-jax extract`: video files in, one file of features per video out."""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference, named_clips
from internvideo_jax.launch.common.feature_files import (
    SUMMARY_FILE,
    Run,
    Summary,
    clip_fields,
    output_names,
    window_fields,
    write_features,
)
from internvideo_jax.launch.common.progress import Progress

if TYPE_CHECKING:
    from internvideo_jax.data.windows import Windows
    from internvideo_jax.evaluation.features import ClipFeatures, FailedClip
    from internvideo_jax.evaluation.window_features import WindowFeatures
    from internvideo_jax.loading import Model

SUMMARY = "compute features of video files, or of windows of them, with a converted model"

EPILOG = """\
Each video VIDEO gives OUTPUT/VIDEO.npz, in the folders that the videos lie in, with the fields
  features         float32: [P] pooled, [N, D] tokens, the class token first, or [C] embedding
  grid             patch tokens along (time, height, width); not of embeddings
  frame_indices    which frames the model saw [T]; timestamps: when, in seconds [T]
  repeated_frames  how many of these are repetitions, because the video has too few
  damaged_frames   how many frames and packets the decoder called damaged on the way to these
  num_frames       frames in the video; source: its path
  kind, dtype, model, model_digest: what made the features; with them, layer and crop if given
With --window=S, a video is cut into windows of S seconds, --stride apart, of which the last ends
with the video. Then features, frame_indices and timestamps have a row for each of the W windows,
and beside them are
  start, end       of the windows, seconds after the file's start [W]; windows that cannot be read
                   are left out
  window, stride   as given
The three counts of frames and the grid are left out. All features of a video are in memory at once.

An embedding, which models that compare clips with texts have instead of the other kinds, is not
normalised.
OUTPUT/summary.json tells what was written and lists what failed, and why; `--resume` adds to it.
Names of more than 200 bytes are cut and end in a checksum; it lists these, too.

examples:
  internvideo-jax extract clip.mp4 --model=MODEL --output=features
  internvideo-jax extract videos/ more/clip.webm --model=MODEL --output=features --kind=tokens
  internvideo-jax extract --list=videos.txt --model=MODEL --output=features --resume
  internvideo-jax extract film.mkv --model=MODEL --output=features --window=2 --stride=1
  internvideo-jax extract clip.mp4 --model=MODEL --output=features --kind=tokens --layer=10

In Python: internvideo_jax.load(NAME).encode(...), evaluation.features.extract_features, or
evaluation.window_features.extract_windows.
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 1 if any file failed."""
    args = _parser().parse_args(argv)
    videos = named_clips.named(args)
    windows = inference.windows_of(args)
    targets = {video: args.output / name for video, name in output_names(videos).items()}
    with arguments.removed_if_empty(args.output):
        _make_output_dir(args.output, args.resume)
        return _extract(args, targets, windows)


def _extract(args: argparse.Namespace, targets: dict[str, Path], windows: "Windows | None") -> int:
    from internvideo_jax.evaluation.features import ClipFeatures, FailedClip
    from internvideo_jax.evaluation.window_features import WindowFeatures
    from internvideo_jax.models.dual_encoder import DualEncoder

    loaded = inference.load_model(args)
    model = loaded.model
    preprocessing = model.preprocessing.require_video()
    num_frames = args.frames or preprocessing.num_frames
    if args.kind is None:
        args.kind = "embedding" if isinstance(model.module, DualEncoder) else "pooled"
    run = Run(
        loaded.name,
        loaded.digest,
        args.kind,
        num_frames,
        loaded.dtype,
        args.layer,
        args.crop,
        None if windows is None else windows.length,
        None if windows is None else windows.stride,
    )
    run.check_folder(args.output)
    todo = [video for video, target in targets.items() if not run.is_finished(video, target)]
    progress = Progress(*((len(todo), "video") if windows is None else (None, "window")))
    results = _results(args, todo, model, num_frames, windows, progress)
    if len(todo) < len(targets):
        print(f"{len(targets) - len(todo)} of {len(targets)} videos are finished", file=sys.stderr)
    inference.announce_frames(model, num_frames)
    summary = Summary.read(args.output, {video: targets[video] for video in todo})
    summary.add_names(args.output, targets)
    started = time.perf_counter()
    written = 0
    failed: list[FailedClip] = []
    with progress, inference.memory_errors(args.batch_size, num_frames):
        for video, found in zip(todo, results, strict=True):
            failed += [result for result in found if isinstance(result, FailedClip)]
            clips = [result for result in found if isinstance(result, ClipFeatures)]
            parts = [result for result in found if isinstance(result, WindowFeatures)]
            if not (clips or parts):
                continue
            fields = clip_fields(clips[0]) if clips else window_fields(parts)
            if failure := write_features(targets[video], video, fields, run):
                failed.append(failure)
                continue
            written += 1
            for clip in clips:
                for note in summary.note(clip):
                    progress.write(note)
    seconds = time.perf_counter() - started
    summary.failed += [dataclasses.asdict(clip) for clip in failed]
    counts = {"written": written, "seconds": round(seconds, 3)}
    settings = dataclasses.asdict(run) | {"image_size": preprocessing.image_size}
    write_json(args.output / SUMMARY_FILE, settings | counts | dataclasses.asdict(summary))
    print(f"{written} of {len(todo)} videos in {seconds:.1f} s -> {args.output}")
    inference.print_failures([(inference.place(clip), clip.reason) for clip in failed])
    return 1 if failed else 0


def _results(
    args: argparse.Namespace,
    videos: Sequence[str],
    model: "Model",
    num_frames: int,
    windows: "Windows | None",
    progress: Progress,
) -> "Iterator[Sequence[ClipFeatures | WindowFeatures | FailedClip]]":
    """What becomes of each video, in their order."""
    from internvideo_jax.evaluation.features import extract_features
    from internvideo_jax.evaluation.window_features import extract_windows

    options = {name: getattr(args, name) for name in ("kind", "layer", "crop")}
    options |= {"batch_size": args.batch_size, "num_threads": args.num_threads}
    if windows is None:
        clips = extract_features(videos, model, num_frames=num_frames, short=args.short, **options)
        return ([result] for result in progress.counting(clips))
    parts = extract_windows(videos, model, windows, num_frames=num_frames, **options)
    by_video = itertools.groupby(progress.counting(parts), key=attrgetter("source"))
    return (list(own) for _, own in by_video)


def _make_output_dir(output: Path, resume: bool) -> None:
    try:
        if not (resume and output.is_dir()):
            arguments.new_output_dir(output)
    except arguments.UsageError as error:
        advice = ", or add --resume to complete it" if output.is_dir() else ""
        raise arguments.UsageError(f"{error}{advice}") from None


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("extract", SUMMARY, EPILOG)
    named_clips.add_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--kind",
        choices=("pooled", "tokens", "embedding"),
        help="one vector per video, all tokens of a layer, or what is compared with texts (default:"
        " pooled, or embedding of models that compare)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="block, from 0, whose tokens are meant (default: the last)",
    )
    parser.add_argument(
        "--crop",
        choices=("center", "squash", "three"),
        help="the central square of each frame, all of it made square, or the mean of three squares"
        " along the longer side (default: as the model was made for)",
    )
    parser.add_argument(
        "--short",
        choices=("repeat", "error"),
        default="repeat",
        help="videos with fewer frames repeat some, or fail; windows repeat (default: %(default)s)",
    )
    inference.add_window_arguments(parser)
    inference.add_arguments(parser)
    parser.add_argument(
        "--resume", action="store_true", help="keep what an earlier run has finished in --output"
    )
    return parser
