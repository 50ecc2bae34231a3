"""`internvideo-jax evaluate`: a model and annotated clips in, metrics and a card out."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from internvideo_jax.class_names import check_order
from internvideo_jax.environment import printable
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference
from internvideo_jax.launch.common.progress import Progress

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.data.examples import Clips
    from internvideo_jax.data.sources.clips import RecordSource
    from internvideo_jax.evaluation.runner import Evaluator, Rows
    from internvideo_jax.saved_model import SavedModel

    # Evaluators by name, how clips are shown, and clips that replace the data's own.
    _Task = tuple[Mapping[str, Evaluator], DataConfig, RecordSource | None]

SUMMARY = "measure a classifier on annotated clips, or a model that compares clips with texts"

EPILOG = """\
Which clips, and how they are shown, say options or the eval_data of a training config (--config).
Every clip is shown S x K times: S choices of frames (--segments) times K squares along its longer
side (--crops); the probabilities are averaged. No clip is ever replaced: those that cannot be read
are listed and left out of the metrics, and the exit code is 1 unless --allow_failed is given.

OUTPUT holds
  result.json        the metrics and all that they depend on: views, frames, dtype, model and
                     annotations (sha256), package versions, the clips that failed
  result.md          the same for reading
  per_class.csv      clips, hits and average precision of every class
  predictions.jsonl  per clip: its label, the five best classes, the frames that the model saw
  confusion.png      which class is taken for which, for up to 100 classes and one label per clip

examples:
  internvideo-jax evaluate --model=MODEL --annotations=val.csv --root=videos --output=result
  internvideo-jax evaluate --model=MODEL --annotations=test.jsonl --segments=1 --crops=1 \\
    --classes=classes.txt --output=result
  internvideo-jax evaluate --model=MODEL --config=configs/stage1/finetune.py:b14,k400 \\
    --config.eval_data.annotations=val.csv --config.eval_data.root=videos --output=result

Models that compare clips with texts have configs of their own. Of retrieval (docs/retrieval.md),
OUTPUT holds
  texts.jsonl        per text: its clips, their ranks, the ten best clips
  contact_sheet.png  some texts, and the five best clips of each
beside the card, and `partial` until that is written: the same command goes on where it was.

  internvideo-jax evaluate --model=MODEL --config=configs/eval/retrieval.py:msrvtt \\
    --config.eval_data.annotations=msrvtt_test1k.json --config.eval_data.root=videos \\
    --output=result

Of zero-shot classification and multiple choice (docs/zero_shot.md), it holds
  per_class.csv, confusion.png       of classes, as above
  predictions.jsonl                  per clip: its label or answer, the five best classes or
                                     candidates
beside the card, and `partial` as above. Names of the classes come from the list or --classes.

  internvideo-jax evaluate --model=MODEL --config=configs/eval/zero_shot.py:k400 \\
    --config.eval_data.annotations=val.csv --config.eval_data.root=videos \\
    --classes=kinetics_400.txt --output=result

In Python: internvideo_jax.evaluation.runner, retrieval and zero_shot.
"""

_VIEWS = ("num_frames", "image_size", "segments", "crops", "sampling")
# What the eval_data of a config say instead.
_CLIP_OPTIONS = (
    *("root", "format", "separator", "frame_pattern"),
    *("segments", "crops", "sampling", "sampling_rate", "frames"),
)


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 1 if clips failed, unless they may."""
    parser = _parser()
    args, overrides = parser.parse_known_args(argv)
    chosen = [name for name in _CLIP_OPTIONS if getattr(args, name) != parser.get_default(name)]
    if args.config is None and overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if args.config is not None and chosen:
        raise arguments.UsageError(
            f"--{chosen[0]}: expected no such option beside --config, whose eval_data say it; set"
            " --config.eval_data.FIELD"
        )

    config = None if args.config is None else arguments.parse_config(args, overrides)
    with arguments.removed_if_empty(args.output):
        return _evaluate(args, overrides, config)


def _evaluate(
    args: argparse.Namespace, overrides: Sequence[str], config: "ConfigDict | None"
) -> int:
    if config is not None and "retrieval" in config:
        from internvideo_jax.launch.common.retrieval_evaluation import evaluate_retrieval

        return evaluate_retrieval(args, overrides, config)
    if config is not None and ("zero_shot" in config or "multiple_choice" in config):
        from internvideo_jax.launch.common.zero_shot_evaluation import evaluate_zero_shot

        return evaluate_zero_shot(args, overrides, config)
    if args.allow_missing:
        raise arguments.UsageError("--allow_missing: expected one of configs/eval with it")

    from internvideo_jax.convert.files.checksums import Checksums
    from internvideo_jax.data.examples import Clips
    from internvideo_jax.evaluation import prediction, result_card

    loaded = inference.load_model(args)
    model, directory = loaded.model, Path(loaded.directory)
    if config is None:
        evaluators, data, source = _annotated_clips(args, model)
    else:
        evaluators, data, source = _config_clips(config, model)
    clips = Clips(data, source=source)
    num_classes = data.num_classes or 0
    names: Sequence[str] = model.classes or [str(number) for number in range(num_classes)]
    if args.classes is not None:
        names = prediction.class_names(model, args.classes)
    arguments.new_output_dir(args.output)
    print(
        f"{len(clips)} clips, {data.segments} segments x {data.crops} crops of"
        f" {data.num_frames}x{data.image_size}x{data.image_size}, {data.sampling}",
        file=sys.stderr,
    )
    inference.announce_frames(model, data.num_frames)

    started = time.perf_counter()
    with Checksums() as checksums:
        # In the background: the weights are gigabytes.
        model_files = result_card.directory_files(directory)
        lists = [Path(data.annotations)] if data.annotations else []
        annotations = [path for path in lists if path.is_file()]
        for file in (*annotations, *model_files):
            checksums.start(file)
        measured = {
            name: _measure(evaluator, model, data, source, clips, args)
            for name, evaluator in evaluators.items()
        }
        sums = checksums.wait([*annotations, *model_files])
    seconds = time.perf_counter() - started
    setting = {
        "views": {name: getattr(data, name) for name in _VIEWS} | {"rate": data.sampling_rate},
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "annotations": {
            "name": ", ".join(os.path.basename(member.name) for member in data.members),
            "clips": len(clips),
            "sha256": sums.pop(annotations[0]) if annotations else clips.fingerprint(),
        },
        "model": result_card.model_entry(model, loaded.name, directory, sums)
        | {"digest": loaded.digest, "num_classes": data.num_classes},
        "config": args.config and {"file": args.config, "overrides": overrides},
        "seed": None,  # Nothing is drawn.
        "batch_size": args.batch_size,
        "seconds": round(seconds, 2),
        **result_card.environment(loaded.dtype),
    }
    failed: dict[int, str] = {}
    reports = []
    for name, rows in measured.items():
        output = args.output / name if len(measured) > 1 else args.output
        output.mkdir(exist_ok=True)
        evaluator = evaluators[name]
        shown = [clips[index].record for index in np.unique(rows.columns["index"]).tolist()]
        reports.append(evaluator.report(rows, shown, names, output))
        failed |= rows.errors
        unread = [(clips.record(index), reason) for index, reason in rows.errors.items()]
        card = {
            "task": evaluator.task,
            "metrics": evaluator.metrics(rows),
            "merging": evaluator.merging,
            "clips": rows.num_clips,
            "failed": [{"id": clip.id, "path": clip.path, "reason": why} for clip, why in unread],
            **setting,
        }
        # Last: a folder with a card is complete.
        result_card.write_card(output, card)
    print(printable("\n".join(reports)))
    print(f"{len(clips)} clips in {seconds:.1f} s -> {args.output}")
    _print_failures(clips, failed)
    return 1 if failed and not args.allow_failed else 0


def _annotated_clips(args: argparse.Namespace, model: "SavedModel") -> "_Task":
    """Classification of the clips of `--annotations`.

    Raises:
      UsageError: the model compares clips with texts instead.
    """
    from internvideo_jax.data.config import ClipSet, DataConfig
    from internvideo_jax.data.sources.clips import RecordSource, open_source
    from internvideo_jax.evaluation.classification import ClassificationEvaluator
    from internvideo_jax.models.dual_encoder import DualEncoder
    from internvideo_jax.models.video_vit import check_num_frames

    if isinstance(model.module, DualEncoder):
        raise arguments.UsageError(
            f"--annotations: expected a classifier, found {type(model.module).__name__}, which"
            " compares clips with texts; measure it with --config=configs/eval/zero_shot.py"
            " (classes) or retrieval.py (captions) and --config.eval_data.annotations=FILE"
        )
    preprocessing = model.preprocessing.require_video()
    num_frames = args.frames or preprocessing.num_frames
    check_num_frames(model.module, num_frames)
    evaluator = ClassificationEvaluator(model.module, preprocessing)
    options = arguments.annotation_options(args)
    num_classes = model.config.num_classes
    named = ClipSet(annotations=str(args.annotations), **options)
    source = open_source(named, num_classes=num_classes, classes=model.classes)
    assert isinstance(source, RecordSource)
    records = source.records
    data = DataConfig(
        annotations=str(args.annotations),
        num_classes=num_classes,
        classes=model.classes,
        multi_label=any(isinstance(record.label, tuple) for record in records),
        sampling=args.sampling,
        sampling_rate=args.sampling_rate,
        num_frames=num_frames,
        image_size=preprocessing.image_size,
        resize=preprocessing.resize,
        segments=args.segments,
        crops=args.crops,
    )
    return {"eval": evaluator}, data, source


def _config_clips(config: "ConfigDict", model: "SavedModel") -> "_Task":
    """What the stage of a training config is evaluated by, and the clips of its `eval_data`."""
    from internvideo_jax.launch.common.run_config import parse_run

    run = parse_run(config)
    evaluators = {name: e.with_model(model) for name, e in run.stage.evaluators().items()}
    if not evaluators or run.eval_data is None:
        raise arguments.UsageError(
            "expected the config of a stage that is evaluated, with eval_data, found none; see"
            " configs/stage1/finetune.py and probe.py"
        )
    # Labels that are names become numbers by these.
    named = run.eval_data.class_names()
    if model.classes is not None and named is not None:
        check_order(named, model.classes, "eval_data.classes")
    return evaluators, run.eval_data, None


def _measure(
    evaluator: "Evaluator",
    model: "SavedModel",
    data: "DataConfig",
    source: "RecordSource | None",
    clips: "Clips",
    args: argparse.Namespace,
) -> "Rows":
    """Shows the model all views of all clips.

    Raises:
      UsageError: none of the clips can be read, or a batch does not fit into memory.
    """
    from internvideo_jax.data import pipeline
    from internvideo_jax.evaluation import runner

    batches = pipeline.eval_batches(
        data,
        evaluator.fields,
        batch_size=args.batch_size,
        source=source,
        num_threads=args.num_threads,
    )
    progress = Progress(len(clips), "clip")
    with progress, inference.memory_errors(args.batch_size, data.num_frames):
        rows = runner.collect(evaluator, model.variables, batches, on_clips=progress.update)
        rows = evaluator.complete(rows, model.variables)
    if not rows.num_clips:
        _print_failures(clips, rows.errors)
        raise arguments.UsageError(f"none of the {len(clips)} clips can be read")
    return rows


def _print_failures(clips: "Clips", errors: Mapping[int, str]) -> None:
    inference.print_failures([(clips.record(i).path, why) for i, why in errors.items()])


def _parser() -> argparse.ArgumentParser:
    from internvideo_jax.data.transforms.sampling import Sampling

    parser = arguments.make_parser("evaluate", SUMMARY, EPILOG)
    default = "(default: %(default)s)"
    clips = parser.add_mutually_exclusive_group(required=True)
    clips.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="clips with labels: a list, or a folder that holds a folder of videos for each class",
    )
    clips.add_argument(
        "--config",
        metavar="FILE.py[:ARGS]",
        help="a training config, whose eval_data and evaluators are used, or one of configs/eval;"
        " change a field with --config.FIELD=VALUE",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    arguments.add_annotation_arguments(parser)
    parser.add_argument(
        "--classes",
        "--class_names",
        type=Path,
        metavar="FILE",
        help="names of the classes, in the model's order: one per line, or JSON (a list, {name:"
        " number}, a config with id2label; default: as the model, or of configs/eval the list,"
        " names them)",
    )
    for name, number, text in (
        ("segments", 4, ""),
        ("crops", 3, ""),
        ("sampling_rate", 1, "frames apart, for dense "),
    ):
        parser.add_argument(
            f"--{name}", type=arguments.positive_int, default=number, help=f"{text}{default}"
        )
    parser.add_argument(
        "--sampling",
        choices=[name for name in get_args(Sampling) if name != "pretraining"],
        default="sparse",
        help=f"how frames are chosen; tsn_frames is for folders of images {default}",
    )
    inference.add_arguments(parser)
    parser.add_argument(
        "--allow_failed", action="store_true", help="exit code 0 although clips cannot be read"
    )
    parser.add_argument(
        "--allow_missing",
        action="store_true",
        help="of configs/eval: measure the videos that are there although others are not",
    )
    return parser
