"""`internvideo-jax predict`: a model and unlabelled clips in, names of classes out."""

import argparse
import csv
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax.environment import printable
from internvideo_jax.evaluation.figures.timeline import format_time
from internvideo_jax.files import atomic_file, write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference, output
from internvideo_jax.launch.common.named_classes import choose_classifier
from internvideo_jax.launch.common.progress import Progress

# A clip or window as the JSON file has it.
Entry = dict[str, Any]

if TYPE_CHECKING:
    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.data.windows import Windows
    from internvideo_jax.evaluation.features import FailedClip
    from internvideo_jax.evaluation.prediction import Classifier, Prediction
    from internvideo_jax.loading import Model

SUMMARY = "name what clips show, or the windows of long videos"

EPILOG = """\
Each video is shown as one clip, whose frames are spread over all of it; with --window=S, it is cut
into windows of S seconds, --stride apart, of which the last ends with the video. With --segments
and --crops, each is shown several times as in `evaluate`, and the probabilities are averaged.

Names of the classes come from the model, which has them from its training or conversion, or from
--classes: one name per line, or JSON (a list, {name: number}, {number: name}, or a Hugging Face
config with id2label). Where both name them, the file's words are shown, which must stand in the
model's order. Without names, classes are their numbers.

Models that compare clips with texts know no classes: --classes names any, and the probabilities are
a softmax of how well each name fits. --prompts says in which texts the names stand, whose
similarities are averaged: a template ("a video of {}"), a file with one on each line, or a data set
whose published ones are meant (k400); without it the names stand alone.

--json=FILE holds
  model, model_digest        what predicted: as it was named, and of its description, which holds
                             the checksums of its weights
  num_classes, dtype         its classes, and what it computed in
  prompts                    templates of the texts that named the classes; null of a classifier
  views                      num_frames, image_size, segments, crops
  windows                    length and stride in seconds, or null
  predictions                for each clip or window: source (its path), start and end (seconds
                             after the file's start; null of whole clips), and its best classes:
                             class (number), name, probability
  failed                     source, start, end, and reason
--csv=FILE holds a line for each of the best classes: source, start, end, rank, class, name,
probability. --plot=FILE (png, pdf, svg, jpg) is a timeline of one video in windows.

examples:
  internvideo-jax predict clip.mp4 --model=internvideo2-b14-k400
  internvideo-jax predict videos/ --model=runs/mine/model --top=3 --json=predictions.json
  internvideo-jax predict match.mp4 --model=runs/mine/model --window=2 --stride=1 --plot=match.png
  internvideo-jax predict clips/ --model=stage2 --classes=sports.txt --prompts="a video of {}"

In Python: internvideo_jax.load(NAME).predict(...), internvideo_jax.evaluation.zero_shot.
"""

# Letters of a class's name in the table of windows; longer ones push the next ones to the right.
_MAX_COLUMN = 24
_VIEWS = ("num_frames", "image_size", "segments", "crops")
_PLACE: dict[str, Any] = {"source": None, "start": None, "end": None}
_COLUMNS = (*_PLACE, "rank", "class", "name", "probability")


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 1 if any file or window failed."""
    args = _parser().parse_args(argv)
    from internvideo_jax.data.annotations.folders import named_videos
    from internvideo_jax.evaluation import prediction
    from internvideo_jax.evaluation.features import FailedClip

    videos = named_videos(args.videos)
    windows = inference.windows_of(args, "plot")
    _check_outputs(args, videos)
    loaded = inference.load_model(args)
    classifier, templates = choose_classifier(args, loaded.model)
    names = classifier.names
    views = prediction.view_config(
        loaded.model, num_frames=args.frames, segments=args.segments, crops=args.crops
    )
    if templates is not None:
        # The middle of intervals is what models with texts were measured with.
        views = dataclasses.replace(views, sampling="intervals")
    inference.announce_frames(loaded.model, views.num_frames)
    started = time.perf_counter()
    entries: list[Entry] = []
    failed: list[FailedClip] = []
    timeline: list[Prediction | FailedClip] = []
    source = None
    width = min(max(map(len, names)), _MAX_COLUMN)
    unit = "video" if windows is None else "window"
    progress = Progress(len(videos) if windows is None else None, unit)
    has_files = any((args.json, args.csv, args.plot))
    with progress, inference.memory_errors(args.batch_size, views.num_frames):
        for result in _results(args, videos, loaded.model, classifier, views, windows):
            progress.update()
            if args.plot:
                timeline.append(result)
            if isinstance(result, FailedClip):
                failed.append(result)
                continue
            entries.append(_entry(result, names, args.top))
            if result.source != source:
                source = result.source
                progress.write(_shown_path(source), file=sys.stdout)
            progress.write(_text(entries[-1], width), file=sys.stdout)
            # Without any file to write, there is nothing left to do when nobody reads on.
            if not has_files and not output.has_reader():
                break
    seconds = time.perf_counter() - started
    if args.json:
        settings = {
            "model": loaded.name,
            "model_digest": loaded.digest,
            "num_classes": len(names),
            "dtype": loaded.dtype,
            "prompts": templates,
            "views": {name: getattr(views, name) for name in _VIEWS},
            "windows": dataclasses.asdict(windows) if windows else None,
        }
        lost = [_PLACE | dataclasses.asdict(clip) for clip in failed]
        write_json(args.json, settings | {"predictions": entries, "failed": lost})
    if args.csv:
        _write_csv(args.csv, entries)
    if args.plot and entries:
        _write_plot(args.plot, timeline, names)
    total = len(entries) + len(failed)
    print(f"{len(entries)} of {total} {unit}s in {seconds:.1f} s", file=sys.stderr)
    inference.print_failures([(inference.place(clip), clip.reason) for clip in failed])
    return 1 if failed else 0


def _results(
    args: argparse.Namespace,
    videos: Sequence[str],
    model: "Model",
    classifier: "Classifier",
    views: "DataConfig",
    windows: "Windows | None",
) -> "Iterator[Prediction | FailedClip]":
    from internvideo_jax.evaluation.prediction import predict_clips, predict_windows

    if windows is None:
        yield from predict_clips(
            videos,
            model,
            views,
            batch_size=args.batch_size,
            num_threads=args.num_threads,
            classifier=classifier,
        )
    else:
        for video in videos:
            yield from predict_windows(
                video,
                model,
                views,
                windows,
                batch_size=args.batch_size,
                num_threads=args.num_threads,
                classifier=classifier,
            )


def _check_outputs(args: argparse.Namespace, videos: Sequence[str]) -> None:
    """Finds out before the work what cannot be written after it."""
    from internvideo_jax.evaluation.figures.files import PICTURES

    arguments.new_output_files(
        {f"--{option}": getattr(args, option) for option in ("json", "csv", "plot")}
    )
    if args.plot is None:
        return
    if not args.plot.name.lower().endswith(PICTURES):
        raise arguments.UsageError(
            f"--plot={args.plot}: expected a name that ends in one of {', '.join(PICTURES)}"
        )
    if len(videos) > 1:
        raise arguments.UsageError(
            f"--plot={args.plot}: expected one video, whose timeline it is, found {len(videos)};"
            " name them one by one"
        )


def _entry(result: "Prediction", names: Sequence[str], top: int) -> Entry:
    """A clip or window as the JSON file has it."""
    classes = [
        {"class": number, "name": names[number], "probability": round(score.probability, 6)}
        for number, score in zip(result.order(top), result.best(names, top), strict=True)
    ]
    return {
        "source": result.source,
        "start": result.start,
        "end": result.end,
        "classes": classes,
    }


def _text(entry: Entry, width: int) -> str:
    """What a person reads of a clip (a line for each class) or of a window (one line)."""
    shares = [
        f"  {100 * best['probability']:5.1f} %  {best['name']:{width}}" for best in entry["classes"]
    ]
    if entry["start"] is None:
        return "\n".join(share.rstrip() for share in shares)
    start, end = (format_time(entry[name], with_tenths=True) for name in ("start", "end"))
    return f"  {start:>6} - {end:>6}{''.join(shares)}".rstrip()


def _shown_path(path: str) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def _write_csv(path: Path, entries: Sequence[Entry]) -> None:
    """Writes a line for each of the best classes of each clip or window."""
    with atomic_file(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for entry in entries:
                place = [entry[name] for name in _PLACE]
                for rank, best in enumerate(entry["classes"], start=1):
                    writer.writerow([*place, rank, *best.values()])


def _write_plot(
    path: Path, timeline: "Sequence[Prediction | FailedClip]", names: Sequence[str]
) -> None:
    from internvideo_jax.evaluation.features import FailedWindow
    from internvideo_jax.evaluation.figures.files import save_figure
    from internvideo_jax.evaluation.figures.timeline import timeline_figure
    from internvideo_jax.evaluation.prediction import Prediction

    shown = [part for part in timeline if isinstance(part, Prediction | FailedWindow)]
    times = np.array([(part.start, part.end) for part in shown], np.float64)
    lost = np.full(len(names), np.nan, np.float32)
    probabilities = np.stack(
        [part.probabilities if isinstance(part, Prediction) else lost for part in shown]
    )
    title = printable(os.path.basename(shown[0].source))
    save_figure(timeline_figure(times, probabilities, names, title), path)
    print(f"the timeline -> {path}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("predict", SUMMARY, EPILOG)
    default = "(default: %(default)s)"
    parser.add_argument(
        "videos", nargs="+", metavar="FILE|DIR", help="video files, or folders to search for them"
    )
    inference.add_arguments(parser)
    parser.add_argument(
        "--top", type=arguments.positive_int, default=5, help=f"how many classes {default}"
    )
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes")
    parser.add_argument(
        "--prompts",
        metavar="TEXT|FILE|NAME",
        help="texts in which they stand, of models that compare clips with texts",
    )
    group = parser.add_argument_group("long videos and views")
    inference.add_window_arguments(group)
    for name, text in (("segments", "choices of frames"), ("crops", "squares of each frame")):
        group.add_argument(
            f"--{name}", type=arguments.positive_int, default=1, help=f"{text} {default}"
        )
    outputs = parser.add_argument_group("outputs, beside the table")
    outputs.add_argument("--json", type=Path, metavar="FILE", help="everything")
    outputs.add_argument("--csv", type=Path, metavar="FILE", help="a line per class")
    outputs.add_argument("--plot", type=Path, metavar="FILE", help="a timeline of the windows")
    return parser
