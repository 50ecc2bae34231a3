"""`internvideo-jax extract`: video files in, one file of features per video out."""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax.data.paths import VIDEO_EXTENSIONS
from internvideo_jax.launch import arguments

if TYPE_CHECKING:
    from internvideo_jax.evaluation.features import ClipFeatures, FailedClip
    from internvideo_jax.saved_model import SavedModel

SUMMARY = "compute features of video files with a converted model"

EPILOG = """\
Each video VIDEO gives OUTPUT/VIDEO.npz, in the folders that the videos lie in, with the fields
  features         float32: [P] pooled, or [N, D] tokens, the class token first
  grid             patch tokens along (time, height, width)
  frame_indices    which frames the model saw [T]; timestamps: when, in seconds [T]
  repeated_frames  how many of these are repetitions, because the video has too few
  num_frames       frames in the video; source: its path
  kind, dtype, model, model_digest: what made the features
OUTPUT/summary.json lists what was written and what failed, and why.

examples:
  internvideo-jax extract clip.mp4 --model=MODEL_DIR --output=features
  internvideo-jax extract videos/ more/clip.webm --model=MODEL_DIR --output=features --kind=tokens
  internvideo-jax extract videos/ --model=MODEL_DIR --output=features --resume

In Python: internvideo_jax.evaluation.features.extract_features.
"""


@arguments.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 if any file failed."""
    args = _parser().parse_args(argv)
    videos = find_videos(args.videos)
    targets = {video: args.output / name for video, name in output_names(videos).items()}
    if not args.resume:
        try:
            arguments.new_output_dir(args.output)
        except arguments.UsageError as error:
            raise arguments.UsageError(f"{error}, or add --resume to complete it") from None

    import jax
    from tqdm import tqdm

    from internvideo_jax import saved_model
    from internvideo_jax.evaluation.features import FailedClip, extract_features

    dtype = args.dtype or arguments.default_dtype(jax.devices()[0])
    model = saved_model.load(args.model, dtype=dtype)
    num_frames = args.frames or model.preprocessing.num_frames
    run = _Run(*_identity(args.model), args.kind, num_frames, dtype)
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
    _announce(model, run, len(targets) - len(todo), len(todo))
    failed: list[FailedClip] = []
    repeated: list[str] = []
    started = time.perf_counter()
    with tqdm(total=len(todo), unit="video", disable=None) as bar:
        for result in results:
            if isinstance(result, FailedClip):
                failed.append(result)
            else:
                write_features(targets[result.clip.source], result, run)
                if result.clip.repeated_frames:
                    repeated.append(result.clip.source)
                    bar.write(_repetition(result), file=sys.stderr)
            bar.update()
    seconds = time.perf_counter() - started
    written = len(todo) - len(failed)
    summary = {
        **dataclasses.asdict(run),
        "image_size": model.preprocessing.image_size,
        "written": written,
        "finished_before": len(targets) - len(todo),
        "seconds": round(seconds, 3),
        "repeated_frames": repeated,
        "failed": [{"source": clip.source, "reason": clip.reason} for clip in failed],
    }
    arguments.write_json(args.output / "summary.json", summary)
    print(f"{written} of {len(todo)} videos in {seconds:.1f} s -> {args.output}")
    _print_failures(failed)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvideo-jax extract",
        description=SUMMARY,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "videos", nargs="+", metavar="FILE|DIR", help="video files, or folders to search for them"
    )
    parser.add_argument("--model", required=True, metavar="MODEL_DIR", help="what `convert` wrote")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--frames", type=_count, help="frames per video (default: as the model was made for)"
    )
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
    parser.add_argument("--batch_size", type=_count, default=8, help="(default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="what the model computes in (default: what suits the device)",
    )
    parser.add_argument("--num_threads", type=_count, help="decoding threads (default: all cores)")
    parser.add_argument(
        "--resume", action="store_true", help="keep what an earlier run has finished in --output"
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def find_videos(named: Sequence[str]) -> list[str]:
    """Absolute paths of the named files, and of the files in named folders that look like videos.

    Raises:
      UsageError: a folder without videos.
    """
    videos: dict[str, None] = {}
    for argument in named:
        path = os.path.abspath(argument)
        if not os.path.isdir(path):
            videos[path] = None
            continue
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(VIDEO_EXTENSIONS) and not name.startswith(".")
        ]
        if not found:
            raise arguments.UsageError(
                f"{argument}: expected a folder with videos ({', '.join(VIDEO_EXTENSIONS)}),"
                " found none; name files of other extensions one by one"
            )
        videos.update(dict.fromkeys(sorted(found)))
    return list(videos)


def output_names(videos: Sequence[str]) -> dict[str, Path]:
    """Where the features of each video go, relative to the output folder.

    The name keeps its extension and the folders below the deepest one that holds all the videos, so
    that no two videos share it.
    """
    common = os.path.commonpath([os.path.dirname(video) for video in videos])
    return {video: Path(os.path.relpath(video, common) + ".npz") for video in videos}


@dataclasses.dataclass(frozen=True)
class _Run:
    """What must agree for a file of an earlier run to be kept.

    Attributes:
      model: name of the model's folder.
      model_digest: of its description, which names the weights it was converted from.
      kind: "pooled" or "tokens".
      frames: frames per video.
      dtype: what the model computed in.
    """

    model: str
    model_digest: str
    kind: str
    frames: int
    dtype: str

    def is_finished(self, video: str, target: Path) -> bool:
        """Whether `target` holds this run's features of `video`.

        Raises:
          UsageError: it was made with other settings.
        """
        try:
            with np.load(target) as file:
                fields = {name: file[name] for name in file.files}
            found = _Run(
                model=str(fields["model"]),
                model_digest=str(fields["model_digest"]),
                kind=str(fields["kind"]),
                frames=len(fields["frame_indices"]),
                dtype=str(fields["dtype"]),
            )
            source = str(fields["source"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False
        if found != self:
            raise arguments.UsageError(
                f"{target}: expected features of {self}, found some of {found};"
                " resume with the settings of the first run or name a new --output"
            )
        return source == video

    def __str__(self) -> str:
        return (
            f"model {self.model} ({self.model_digest}), kind {self.kind}, {self.frames} frames,"
            f" {self.dtype}"
        )


def write_features(target: Path, result: "ClipFeatures", run: _Run) -> None:
    """Writes one video's features; the file is whole or absent.

    Raises:
      UsageError: it cannot be written.
    """
    clip = result.clip
    fields: dict[str, Any] = {
        "features": result.features,
        "grid": np.array(result.grid),
        "frame_indices": clip.frame_indices,
        "timestamps": clip.timestamps,
        "repeated_frames": clip.repeated_frames,
        "num_frames": clip.num_frames,
        "source": clip.source,
        "kind": run.kind,
        "dtype": run.dtype,
        "model": run.model,
        "model_digest": run.model_digest,
    }
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **fields)
        os.replace(temporary, target)
    except OSError as error:
        raise arguments.UsageError(
            f"{target}: cannot write it ({error.strerror}); make room and run again with --resume"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _identity(model: str) -> tuple[str, str]:
    from internvideo_jax import saved_model

    description = json.dumps(saved_model.read_description(model), sort_keys=True)
    digest = hashlib.sha256(description.encode()).hexdigest()[:16]
    return os.path.basename(os.path.abspath(model)), digest


def _announce(model: "SavedModel", run: _Run, num_finished: int, num_todo: int) -> None:
    if num_finished:
        print(f"{num_finished} of {num_finished + num_todo} videos are finished", file=sys.stderr)
    if run.frames != model.preprocessing.num_frames:
        print(
            f"the model was made for {model.preprocessing.num_frames} frames: its position table is"
            f" resized to {run.frames}",
            file=sys.stderr,
        )


def _repetition(result: "ClipFeatures") -> str:
    clip = result.clip
    return (
        f"{clip.source}: {clip.num_frames} frames for {len(clip.frame_indices)}:"
        f" {clip.repeated_frames} repeated"
    )


def _print_failures(failed: "Sequence[FailedClip]") -> None:
    if not failed:
        return
    width = max(len(clip.source) for clip in failed)
    print(f"{len(failed)} failed:", file=sys.stderr)
    for clip in failed:
        print(f"  {clip.source:{width}}  {clip.reason}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
