"""`internvideo-jax scan`: which entries of annotation files are wrong, which clips unreadable."""

import argparse
import dataclasses
import functools
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from internvideo_jax.data.annotations.class_counts import Label, class_warnings, count_labels
from internvideo_jax.data.annotations.folders import (
    has_class_folders,
    level_warnings,
    named_videos,
    read_class_folders,
)
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.environment import usable_cpus
from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common.progress import Progress

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.lists import Annotations
    from internvideo_jax.data.decode.clip_check import ClipCheck
    from internvideo_jax.data.decode.video import VideoError

SUMMARY = "list wrong annotations and unreadable clips, with the reasons"

ANNOTATION_EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".list")

# A wrong root makes every clip of a large data set a missing one.
MAX_SHOWN_CLIPS = 100

EPILOG = f"""\
Files that end in {", ".join(ANNOTATION_EXTENSIONS)} are annotation files; all others are clips.
Every entry of an annotation file is checked, then every clip: its frames are listed and the first,
the middle and the last one decoded, in processes that are killed when they take too long. The exit
code is 1 if anything is wrong.

A folder whose videos all lie in folders in it is read as `train` would, a folder for each class: an
empty one is wrong. Of classes, what is hardly meant is warned of: one alone, names that look alike,
classes of a single clip, clips without labels among others, folders of classes a level deeper.

examples:
  internvideo-jax scan train.jsonl val.jsonl --num_classes=400
  internvideo-jax scan train.csv --root=/data/k400 --separator=, --json=report.json
  internvideo-jax scan videos/ more/clip.webm --every_frame

In Python: internvideo_jax.data.annotations.lists.check_annotations and .clip_check.check_clip.
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 1 if anything is wrong."""
    args = _parser().parse_args(argv)
    arguments.new_output_file(args.json, "--json")
    started = time.perf_counter()
    annotations = {path: _read(path, args) for path in args.inputs if _is_annotation(path)}
    for path, found in annotations.items():
        read = f"{path}: {len(found.records)} clips, format {found.format}"
        print(found.error or read)
    videos = [path for path in args.inputs if not _is_annotation(path)]
    folders = [_read_folders(path) for path in videos if _holds_classes(path)]
    counts = {path: count_labels(found.records) for path, found in annotations.items()}
    counts |= {folder.path: folder.counts for folder in folders if folder.problem is None}
    warnings = [
        f"{path}: {text}" for path, known in counts.items() for text in class_warnings(known)
    ]
    warnings += [text for folder in folders for text in folder.warnings]
    for line in (*map(str, folders), *(f"warning: {text}" for text in warnings)):
        print(line)
    clips = _Clips(annotations, named_videos(videos) if videos else [])
    number, broken, seconds_readable = _scan(clips, args)
    seconds = time.perf_counter() - started
    if args.json is not None:
        report = {
            "annotations": [_annotation_report(*item) for item in annotations.items()],
            "class_folders": [_folder_report(folder) for folder in folders],
            "warnings": warnings,
            "clips": number,
            "readable": number - len(broken),
            "readable_seconds": round(seconds_readable, 3),
            "unreadable": broken,
            "seconds": round(seconds, 3),
        }
        write_json(args.json, report)
    print(
        f"{number} clips in {seconds:.1f} s: {number - len(broken)} readable"
        f" ({_duration(seconds_readable)}), {len(broken)} not"
    )
    width = max((len(clip["name"]) for clip in broken[:MAX_SHOWN_CLIPS]), default=0)
    for clip in broken[:MAX_SHOWN_CLIPS]:
        print(f"  {clip['name']:{width}}  {clip['reason']}")
    if len(broken) > MAX_SHOWN_CLIPS:
        print(f"  and {len(broken) - MAX_SHOWN_CLIPS} more; --json=FILE lists them all")
    is_wrong = any(found.error for found in annotations.values())
    return 1 if broken or is_wrong or any(folder.problem for folder in folders) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvideo-jax scan",
        description=SUMMARY,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="ANNOTATIONS|FILE|DIR",
        help="annotation files, clips, or folders to search for videos",
    )
    arguments.add_annotation_arguments(parser)
    parser.add_argument(
        "--num_classes",
        type=arguments.positive_int,
        help="every clip needs a label, and one below this number",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes, one a line or JSON, of which every label that is a name must"
        " be one; sets --num_classes",
    )
    parser.add_argument(
        "--every_frame", action="store_true", help="decode all of a clip, not three frames of it"
    )
    parser.add_argument(
        "--workers",
        type=arguments.positive_int,
        default=usable_cpus(),
        help="processes (default: all cores)",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, help="seconds for a clip (default: %(default)g)"
    )
    parser.add_argument("--json", metavar="FILE", help="where to write all that was found")
    return parser


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected more than 0 seconds, found {text}")
    return number


def _is_annotation(path: str) -> bool:
    return path.lower().endswith(ANNOTATION_EXTENSIONS) and not os.path.isdir(path)


def _read(path: str, args: argparse.Namespace) -> "Annotations":
    from internvideo_jax.class_names import read_class_names
    from internvideo_jax.data.annotations.lists import check_annotations

    options = arguments.annotation_options(args)
    classes = read_class_names(args.classes, args.num_classes) if args.classes else None
    return check_annotations(path, num_classes=args.num_classes, classes=classes, **options)


def _holds_classes(path: str) -> bool:
    return os.path.isdir(path) and has_class_folders(path)


class _ClassFolders(NamedTuple):
    """A folder that holds a folder for each class: clips of each, or why it cannot be one."""

    path: str
    counts: "Counter[Label]"
    problem: str | None
    warnings: Sequence[str] = ()

    def __str__(self) -> str:
        if self.problem is not None:
            return self.problem
        fewest, most = min(self.counts.values()), max(self.counts.values())
        classes = f"{len(self.counts)} classes, {fewest} to {most} clips"
        return f"{self.path}: a folder for each of {classes}"


def _read_folders(path: str) -> _ClassFolders:
    try:
        clips = read_class_folders(path)
    except ValueError as error:
        return _ClassFolders(path, Counter(), str(error))
    labels: Counter[Label] = Counter(clip.label for clip in clips)
    return _ClassFolders(path, labels, None, level_warnings(path, [clip.path for clip in clips]))


class _Clip(NamedTuple):
    """A clip, stripped of all but what is read of it, and who names it first."""

    record: ClipRecord
    annotations: str | None = None
    id: str | None = None


class _Clips:
    """The different clips of annotation files and folders; only their hashes are held."""

    def __init__(self, annotations: "dict[str, Annotations]", videos: Sequence[str]):
        self._annotations, self._videos = annotations, videos
        hashes = np.sort(np.fromiter((hash(clip.record) for clip in self._all()), np.int64))
        repeated = hashes[1:][hashes[1:] == hashes[:-1]]
        self._repeated = set(repeated.tolist())
        self.expected_number = len(hashes) - len(repeated)

    def __iter__(self) -> Iterator[_Clip]:
        seen = set()
        for clip in self._all():
            if hash(clip.record) in self._repeated:
                if clip.record in seen:
                    continue
                seen.add(clip.record)
            yield clip

    def _all(self) -> Iterator[_Clip]:
        for path, found in self._annotations.items():
            for record in found.records:
                read = dataclasses.replace(record, id="", label=None, captions=(), source="")
                yield _Clip(read, path, record.id)
        yield from (_Clip(ClipRecord("", video)) for video in self._videos)


def _scan(clips: _Clips, args: argparse.Namespace) -> tuple[int, list[dict[str, Any]], float]:
    """How many clips there are, which are unreadable, and how many seconds the others last.

    Of an unreadable clip, `name` is its path with its times, `annotations` the first file that
    names it and `id` what it is there; `reason` says why it cannot be read.
    """
    from internvideo_jax.data.decode.clip_check import ClipCheck
    from internvideo_jax.launch.common.worker_pool import map_in_workers

    results = map_in_workers(
        functools.partial(_check, every_frame=args.every_frame),
        enumerate(clips),
        num_workers=min(args.workers, max(clips.expected_number, 1)),
        timeout=args.timeout,
    )
    number, seconds, broken = 0, 0.0, {}
    with Progress(clips.expected_number, "clip") as bar:
        for (place, clip), result in results:
            number += 1
            if isinstance(result, ClipCheck):
                seconds += result.num_frames / result.fps if result.fps else 0.0
            else:
                broken[place] = {
                    "name": _name(clip.record),
                    "annotations": clip.annotations,
                    "id": clip.id,
                    "reason": result.reason,
                }
                bar.set_postfix(unreadable=len(broken))
            bar.update()
    return number, [broken[place] for place in sorted(broken)], seconds


def _check(numbered: tuple[int, _Clip], *, every_frame: bool) -> "ClipCheck | VideoError":
    from internvideo_jax.data.decode.clip_check import check_clip
    from internvideo_jax.data.decode.video import Limits

    # The workers' time limit also holds where a decoder hangs, and for a clip as a whole.
    limits = Limits(deadline=math.inf)
    return check_clip(numbered[1].record, every_frame=every_frame, limits=limits)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 3600 else f"{seconds / 3600:.2f} h"


def _name(record: ClipRecord) -> str:
    if record.start is None and record.end is None:
        return record.path
    start = 0 if record.start is None else record.start
    end = "the end" if record.end is None else f"{record.end:g} s"
    return f"{record.path} ({start:g} s to {end})"


def _folder_report(folder: _ClassFolders) -> dict[str, Any]:
    return {"path": folder.path, "clips": dict(folder.counts), "problem": folder.problem}


def _annotation_report(path: str, found: "Annotations") -> dict[str, Any]:
    problems = [] if found.error is None else found.error.problems
    return {
        "path": path,
        "format": found.format,
        "clips": len(found.records),
        "wrong": 0 if found.error is None else found.error.num_problems,
        # The first MAX_KEPT_PROBLEMS of them.
        "problems": [problem._asdict() for problem in problems],
    }
