"""`internvideo-jax extract`: video files in, one file of features per video out."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from internvideo_jax.data.annotations.folders import named_videos
from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference
from internvideo_jax.launch.common.feature_files import (
    SUMMARY_FILE,
    Run,
    Summary,
    output_names,
    write_features,
)
from internvideo_jax.launch.common.progress import Progress

SUMMARY = "compute features of video files with a converted model"

EPILOG = """\
Each video VIDEO gives OUTPUT/VIDEO.npz, in the folders that the videos lie in, with the fields
  features         float32: [P] pooled, or [N, D] tokens, the class token first
  grid             patch tokens along (time, height, width)
  frame_indices    which frames the model saw [T]; timestamps: when, in seconds [T]
  repeated_frames  how many of these are repetitions, because the video has too few
  damaged_frames   how many frames and packets the decoder called damaged on the way to these
  num_frames       frames in the video; source: its path
  kind, dtype, model, model_digest: what made the features
OUTPUT/summary.json tells what was written and lists what failed, and why; `--resume` adds to it.
Names of more than 200 bytes are cut and end in a checksum; it lists these, too.

examples:
  internvideo-jax extract clip.mp4 --model=MODEL --output=features
  internvideo-jax extract videos/ more/clip.webm --model=MODEL --output=features --kind=tokens
  internvideo-jax extract videos/ --model=MODEL --output=features --resume

In Python: internvideo_jax.load(NAME).encode(...), or evaluation.features.extract_features.
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 1 if any file failed."""
    args = _parser().parse_args(argv)
    videos = named_videos(args.videos)
    targets = {video: args.output / name for video, name in output_names(videos).items()}
    with arguments.removed_if_empty(args.output):
        _make_output_dir(args.output, args.resume)
        return _extract(args, targets)


def _extract(args: argparse.Namespace, targets: dict[str, Path]) -> int:
    from internvideo_jax.evaluation.features import FailedClip, extract_features

    loaded = inference.load_model(args)
    model = loaded.model
    preprocessing = model.preprocessing.require_video()
    num_frames = args.frames or preprocessing.num_frames
    run = Run(loaded.name, loaded.digest, args.kind, num_frames, loaded.dtype)
    run.check_folder(args.output)
    todo = [video for video, target in targets.items() if not run.is_finished(video, target)]
    results = extract_features(
        todo,
        model,
        num_frames=num_frames,
        kind=args.kind,
        batch_size=args.batch_size,
        num_threads=args.num_threads,
        short=args.short,
    )
    if len(todo) < len(targets):
        print(f"{len(targets) - len(todo)} of {len(targets)} videos are finished", file=sys.stderr)
    inference.announce_frames(model, num_frames)
    summary = Summary.read(args.output, {video: targets[video] for video in todo})
    summary.add_names(args.output, targets)
    started = time.perf_counter()
    written = 0
    failed: list[FailedClip] = []
    progress = Progress(len(todo), "video")
    with progress, inference.memory_errors(args.batch_size, num_frames):
        for result in results:
            if isinstance(result, FailedClip):
                failed.append(result)
            elif failure := write_features(targets[result.clip.source], result, run):
                failed.append(failure)
            else:
                written += 1
                for note in summary.note(result):
                    progress.write(note)
            progress.update()
    seconds = time.perf_counter() - started
    summary.failed += [dataclasses.asdict(clip) for clip in failed]
    counts = {"written": written, "seconds": round(seconds, 3)}
    settings = dataclasses.asdict(run) | {"image_size": preprocessing.image_size}
    write_json(args.output / SUMMARY_FILE, settings | counts | dataclasses.asdict(summary))
    print(f"{written} of {len(todo)} videos in {seconds:.1f} s -> {args.output}")
    inference.print_failures([(clip.source, clip.reason) for clip in failed])
    return 1 if failed else 0


def _make_output_dir(output: Path, resume: bool) -> None:
    try:
        if not (resume and output.is_dir()):
            arguments.new_output_dir(output)
    except arguments.UsageError as error:
        advice = ", or add --resume to complete it" if output.is_dir() else ""
        raise arguments.UsageError(f"{error}{advice}") from None


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("extract", SUMMARY, EPILOG)
    parser.add_argument(
        "videos", nargs="+", metavar="FILE|DIR", help="video files, or folders to search for them"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--kind",
        choices=("pooled", "tokens"),
        default="pooled",
        help="one vector per video, or all tokens of the last layer (default: %(default)s)",
    )
    parser.add_argument(
        "--short",
        choices=("repeat", "error"),
        default="repeat",
        help="videos with fewer frames repeat some, or fail (default: %(default)s)",
    )
    inference.add_arguments(parser)
    parser.add_argument(
        "--resume", action="store_true", help="keep what an earlier run has finished in --output"
    )
    return parser
