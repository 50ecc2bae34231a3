"""`internvideo-jax evaluate`: a classifier and annotated clips in, metrics and a card out."""

import argparse
import dataclasses
import itertools
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.data.transforms.views import EvalViews
    from internvideo_jax.evaluation.classification_run import ClipViews, UnreadableClip
    from internvideo_jax.saved_model import SavedModel

SUMMARY = "measure a classifier on annotated clips"

EPILOG = """\
Every clip is shown S x K times: S choices of frames (--segments) times K squares along its longer
side (--crops); the probabilities are averaged. No clip is ever replaced: those that cannot be read
are listed and left out of the metrics, and the exit code is 1 unless --allow_failed is given.

OUTPUT holds
  result.json        the metrics and all that they depend on: views, frames, dtype, model and
                     annotations (sha256), package versions, the clips that failed
  per_class.csv      clips, hits and average precision of every class
  predictions.jsonl  per clip: its label, the five best classes, the frames that the model saw
  confusion.png      which class is taken for which, for up to 100 classes and one label per clip

examples:
  internvideo-jax evaluate --model=MODEL_DIR --annotations=val.csv --root=videos --output=result
  internvideo-jax evaluate --model=MODEL_DIR --annotations=test.jsonl --segments=1 --crops=1 \\
    --class_names=classes.txt --output=result

In Python: internvideo_jax.evaluation.classification_run.
"""

_MISSING_GLYPH = re.compile(r"Glyph \d+ .* missing from font")


@arguments.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 if clips failed, unless they may."""
    args = _parser().parse_args(argv)

    import jax

    from internvideo_jax import saved_model
    from internvideo_jax.convert.files.checksums import Checksums
    from internvideo_jax.data.annotations.lists import read_annotations
    from internvideo_jax.data.transforms.views import EvalViews
    from internvideo_jax.evaluation import classification_report as report
    from internvideo_jax.evaluation import classification_run as run
    from internvideo_jax.evaluation import result_card
    from internvideo_jax.evaluation.classification import class_table

    dtype = args.dtype or arguments.default_dtype(jax.devices()[0])
    model = saved_model.load(args.model, dtype=dtype)
    forward = run.classifier_forward(model)
    num_classes = model.config.num_classes
    names = class_names(args.class_names, num_classes)
    records = read_annotations(
        args.annotations,
        root=args.root,
        format=args.format,
        num_classes=num_classes,
        separator=args.separator,
        frame_pattern=args.frame_pattern,
    )
    labels = clip_labels(records, num_classes)
    plan = EvalViews(
        num_frames=args.frames or model.preprocessing.require_video().num_frames,
        image_size=model.preprocessing.require_video().image_size,
        segments=args.segments,
        crops=args.crops,
        sampling=args.sampling,
        rate=args.sampling_rate,
    )
    arguments.new_output_dir(args.output)
    _announce(model, plan, records)

    started = time.perf_counter()
    with Checksums() as checksums, _Progress(len(records)) as progress:
        # In the background: the weights are gigabytes.
        model_files = result_card.directory_files(args.model)
        for file in (args.annotations, *model_files):
            checksums.start(file)
        batches = run.view_batches(
            records,
            plan,
            batch_size=args.batch_size,
            num_threads=args.num_threads,
            on_clip=progress.note,
        )
        first = next(batches, None)
        if first is None:
            _print_failures(progress.failed, records)
            raise arguments.UsageError(f"none of the {len(records)} clips can be read")
        predictions = run.predict(forward, itertools.chain([first], batches))
        sums = checksums.wait([args.annotations, *model_files])
    seconds = time.perf_counter() - started

    labels = labels[predictions.index]
    values = run.metrics(predictions.probabilities, labels)
    rows = class_table(predictions.probabilities, run.multi_hot(labels, num_classes), names)
    card = {
        "task": "classification",
        "metrics": values,
        "clips": len(predictions.index),
        "failed": [
            {"id": records[clip.index].id, "path": records[clip.index].path, "reason": clip.reason}
            for clip in progress.failed
        ],
        "views": dataclasses.asdict(plan),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "merging": "mean of the softmax of each view",
        "annotations": {
            "name": args.annotations.name,
            "clips": len(records),
            "sha256": sums.pop(args.annotations),
        },
        "model": {
            "name": os.path.basename(os.path.abspath(args.model)),
            "architecture": type(model.module).__name__,
            "num_classes": num_classes,
            "sha256": result_card.combined_sha256(sums, args.model),
            "source": model.metadata.get("source"),
        },
        "seed": None,  # Nothing is drawn.
        "batch_size": args.batch_size,
        "seconds": round(seconds, 2),
        **result_card.environment(dtype),
    }
    report.write_predictions(
        args.output / "predictions.jsonl", records, predictions, progress.frames
    )
    report.write_table(args.output / "per_class.csv", rows)
    if labels.ndim == 1:
        _write_figure(args.output / "confusion.png", labels, predictions.probabilities, names)
    # Last: a folder with a card is complete.
    write_json(args.output / "result.json", card)
    print(report.format_result(values, rows, len(predictions.index), len(progress.failed)))
    print(f"{len(records)} clips in {seconds:.1f} s -> {args.output}")
    _print_failures(progress.failed, records)
    return 1 if progress.failed and not args.allow_failed else 0


def _parser() -> argparse.ArgumentParser:
    from internvideo_jax.data.transforms.sampling import Sampling

    parser = argparse.ArgumentParser(
        prog="internvideo-jax evaluate",
        description=SUMMARY,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = "(default: %(default)s)"
    parser.add_argument(
        "--model", type=Path, required=True, metavar="MODEL_DIR", help="a saved classifier"
    )
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="FILE", help="clips with labels"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    arguments.add_annotation_arguments(parser)
    parser.add_argument(
        "--class_names", type=Path, metavar="FILE", help="one name per line, or a JSON list"
    )
    parser.add_argument("--segments", type=arguments.positive_int, default=4, help=default)
    parser.add_argument("--crops", type=arguments.positive_int, default=3, help=default)
    parser.add_argument(
        "--sampling",
        choices=[name for name in get_args(Sampling) if name != "pretraining"],
        default="sparse",
        help=f"how frames are chosen; tsn_frames is for folders of images {default}",
    )
    parser.add_argument(
        "--sampling_rate",
        type=arguments.positive_int,
        default=1,
        help=f"frames apart, for dense {default}",
    )
    parser.add_argument(
        "--frames",
        type=arguments.positive_int,
        help="per view (default: as the model was made for)",
    )
    parser.add_argument(
        "--batch_size",
        type=arguments.positive_int,
        default=8,
        help=f"views per forward pass {default}",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="what the model computes in (default: what suits the device)",
    )
    parser.add_argument(
        "--num_threads", type=arguments.positive_int, help="decoding threads (default: all cores)"
    )
    parser.add_argument(
        "--allow_failed", action="store_true", help="exit code 0 although clips cannot be read"
    )
    return parser


def class_names(path: Path | None, num_classes: int) -> list[str]:
    """Names of the classes from a file, or their numbers.

    Raises:
      UsageError: no list of as many names as the model has classes.
    """
    if path is None:
        return [str(number) for number in range(num_classes)]
    text = path.read_text(encoding="utf-8")
    names: Any = json.loads(text) if path.suffix == ".json" else text.splitlines()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise arguments.UsageError(f"{path}: expected a JSON list of class names")
    if len(names) != num_classes:
        raise arguments.UsageError(
            f"{path}: expected names of the model's {num_classes} classes, found {len(names)}"
        )
    return names


def clip_labels(records: "Sequence[ClipRecord]", num_classes: int) -> np.ndarray:
    """Labels of clips that each have one as int64 `[N]`, otherwise multi-hot, bool `[N, C]`."""
    if not any(isinstance(record.label, tuple) for record in records):
        return np.array([record.label for record in records], np.int64)
    labels = np.zeros((len(records), num_classes), bool)
    for row, record in zip(labels, records, strict=True):
        row[list(record.label) if isinstance(record.label, tuple) else record.label] = True
    return labels


class _Progress:
    """Progress bar over clips that remembers what is needed of each."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self.frames: dict[int, list[list[int]]] = {}
        self.failed: list[UnreadableClip] = []
        self._bar = tqdm(total=total, unit="clip", disable=None)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def note(self, clip: "ClipViews | UnreadableClip") -> None:
        from internvideo_jax.evaluation.classification_run import UnreadableClip

        if isinstance(clip, UnreadableClip):
            self.failed.append(clip)
        else:
            self.frames[clip.index] = clip.frame_indices.tolist()
        self._bar.update()


def _announce(model: "SavedModel", plan: "EvalViews", records: "Sequence[ClipRecord]") -> None:
    print(
        f"{len(records)} clips, {plan.segments} segments x {plan.crops} crops of"
        f" {plan.num_frames}x{plan.image_size}x{plan.image_size}, {plan.sampling}",
        file=sys.stderr,
    )
    made_for = model.preprocessing.require_video().num_frames
    if plan.num_frames != made_for:
        print(
            f"the model was made for {made_for} frames: its position table is"
            f" resized to {plan.num_frames}",
            file=sys.stderr,
        )


def _write_figure(
    path: Path, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> None:
    from internvideo_jax.evaluation.classification import confusion_counts
    from internvideo_jax.evaluation.confusion_figure import MAX_CLASSES, confusion_figure

    if len(names) <= MAX_CLASSES:
        counts = confusion_counts(labels, probabilities.argmax(axis=1), len(names))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            confusion_figure(counts, names).savefig(path, dpi=120)
        # Matplotlib warns of every character.
        others = [w for w in caught if not _MISSING_GLYPH.match(str(w.message))]
        for warning in others:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        if len(others) < len(caught):
            print(
                f"{path.name}: the font lacks characters of the class names; they show as boxes",
                file=sys.stderr,
            )


def _print_failures(failed: "Sequence[UnreadableClip]", records: "Sequence[ClipRecord]") -> None:
    if not failed:
        return
    width = max(len(records[clip.index].path) for clip in failed)
    print(f"{len(failed)} failed:", file=sys.stderr)
    for clip in failed:
        print(f"  {records[clip.index].path:{width}}  {clip.reason}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
