"""`internvideo-jax train`: trains a stage from a config, or says what that would take."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvideo_jax.launch import arguments
from internvideo_jax.parallel import aot

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.evaluation.runner import Evaluator
    from internvideo_jax.training.config import TrainConfig
    from internvideo_jax.training.stage import Evaluation, HostBatch, Stage

SUMMARY = "train: stage 1, distillation, fine-tuning, probing"

# A launcher starts the same command again on it.
EXIT_PREEMPTED = 42

EPILOG = """\
WORKDIR gets checkpoints/, metrics.jsonl, tensorboard/ and loss.png, and at the end model/, which
all other commands take (with averaged weights also model_ema/). Started again with the same config,
a run goes on from its newest checkpoint. Exit code 42: stopped by SIGTERM after a checkpoint.
What a config holds: docs/training.md.

examples:
  internvideo-jax train --config=configs/stage1/finetune.py:b14,k400 --workdir=runs/k400 \\
      --config.data.annotations=train.csv --config.data.root=videos
  internvideo-jax train --config=configs/stage1/pretrain.py:1b --dry_run --topology=v5e:16x16

In Python: internvideo_jax.training.loop.train.
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run's config, checked.

    Attributes:
      stage: what to train.
      train: how.
      data: the training clips.
      eval_data: clips to evaluate on; None without evaluation.
      as_json: the whole config, ready for JSON; checkpoints keep it with the clips' fingerprint.
    """

    stage: "Stage"
    train: "TrainConfig"
    data: "DataConfig"
    eval_data: "DataConfig | None"
    as_json: dict[str, Any]


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0, or 42 if it was stopped after a checkpoint."""
    parser = arguments.make_parser("train", SUMMARY, EPILOG)
    arguments.add_config_argument(parser)
    parser.add_argument("--workdir", help="folder of the run; made if need be")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="allocate nothing: print parameters, shardings, memory per device, the schedule",
    )
    parser.add_argument(
        "--topology",
        metavar="CHIP:AxB[xC]",
        help="dry run for a TPU slice instead of this machine's devices, for example"
        f" {', '.join(aot.EXAMPLE_TOPOLOGIES[:3])}",
    )
    args, leftover = parser.parse_known_args(argv)
    if args.topology and not args.dry_run:
        raise arguments.UsageError("--topology describes absent devices: add --dry_run")
    if not args.dry_run and args.workdir is None:
        raise arguments.UsageError("expected --workdir=DIR for the run's files, or --dry_run")
    if args.topology:
        code = arguments.use_tpu_compiler("train", argv)
        if code is not None:
            return code

    run = parse_run(arguments.parse_config(args, leftover))
    if args.dry_run:
        print(dry_run(run, args.topology))
        return 0
    if "://" in args.workdir:
        raise arguments.UsageError(
            f"--workdir={args.workdir}: expected a folder of the file system; mount the bucket"
        )
    workdir = Path(args.workdir)
    if workdir.exists() and not workdir.is_dir():
        raise arguments.UsageError(f"--workdir={workdir}: expected a folder, found a file")
    return 0 if train(run, workdir) else EXIT_PREEMPTED


def parse_run(config: "ConfigDict") -> Run:
    """Turns a ConfigDict with `stage`, `train`, `data` and perhaps `eval_data` into dataclasses.

    Raises:
      ValueError: a part is missing or has wrong fields, or two parts contradict each other.
    """
    from internvideo_jax.config import from_dict, to_dict
    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.training.config import TrainConfig
    from internvideo_jax.training.stages import make_stage

    parts, known = ("stage", "train", "data"), ("stage", "train", "data", "eval_data")
    if any(name not in config for name in parts) or any(name not in known for name in config):
        raise ValueError(
            f"expected a config with {', '.join(parts)} and perhaps eval_data, found"
            f" {', '.join(config)}; start from a file of configs/stage1"
        )
    train = from_dict(TrainConfig, config.train, "config.train")
    data = from_dict(DataConfig, config.data, "config.data")
    eval_config = config.get("eval_data")
    eval_data = eval_config and from_dict(DataConfig, eval_config, "config.eval_data")
    if data.num_sample != train.num_sample:
        raise ValueError(
            f"expected one number of augmented copies, found data.num_sample={data.num_sample} and"
            f" train.num_sample={train.num_sample}; set both alike"
        )
    stage_config = config.stage.to_dict()
    stage = make_stage(stage_config)
    _check_fits(stage, data, "config.data")
    if data.multi_label and stage.num_classes is not None:
        raise ValueError(
            "config.data.multi_label: expected False, as this stage trains with one label for each"
            " clip, found True"
        )
    if eval_data and _has_clips(eval_data):
        _check_fits(stage, eval_data, "config.eval_data")
    as_json = {
        # Tuples become the lists that a checkpoint gives back.
        "stage": json.loads(json.dumps(stage_config)),
        "train": to_dict(train),
        "data": to_dict(data),
        "eval_data": eval_data and to_dict(eval_data),
    }
    return Run(stage, train, data, eval_data, as_json)


def _check_fits(stage: "Stage", data: "DataConfig", where: str) -> None:
    """Raises ValueError naming all fields in which the data are not what the stage takes."""
    wanted = {}
    video = stage.example_batch(1).get("video")
    if video is not None:
        wanted["num_frames"], wanted["image_size"] = video.shape[1:3]
    if stage.num_classes is not None:
        wanted["num_classes"] = stage.num_classes
    wrong = [
        f"{where}.{name}: expected {value} as in config.stage, found {getattr(data, name)}"
        for name, value in wanted.items()
        if getattr(data, name) != value
    ]
    if wrong:
        raise ValueError("; ".join(wrong) + "; set both alike")


def train(run: Run, workdir: Path) -> bool:
    """Trains; returns False if SIGTERM stopped it. Errors are those of `training.loop.train`."""
    import jax

    from internvideo_jax.data import pipeline
    from internvideo_jax.training import loop

    steps_per_epoch = pipeline.steps_per_epoch(run.data, run.train.batch_size)
    run_config = run.as_json | {"clips": pipeline.fingerprint(run.data)}

    def batches(step: int) -> "Iterator[HostBatch]":
        return pipeline.train_batches(
            run.data,
            tuple(run.stage.example_batch(1)),
            batch_size=run.train.batch_size,
            seed=run.train.seed,
            start=step * run.train.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return loop.train(
        run.stage,
        run.train,
        batches,
        workdir,
        run_config=run_config,
        steps_per_epoch=steps_per_epoch,
        evaluations=_evaluations(run),
    )


def dry_run(run: Run, topology_name: str | None = None) -> str:
    """The report of `dry_run.describe`, on this machine's devices or a described TPU slice."""
    import jax

    from internvideo_jax.data import pipeline
    from internvideo_jax.launch.compilation.dry_run import describe
    from internvideo_jax.parallel.mesh import make_mesh

    topology = aot.topology(topology_name) if topology_name else None
    devices = topology.devices if topology else jax.devices()
    steps_per_epoch = None
    if _has_clips(run.data):
        steps_per_epoch = pipeline.steps_per_epoch(run.data, run.train.batch_size)
    return describe(
        run.stage,
        run.train,
        make_mesh(run.train.mesh, devices),
        steps_per_epoch=steps_per_epoch,
        memory_limit=topology.chip.hbm_bytes if topology else None,
    )


def _evaluations(run: Run) -> "dict[str, Evaluation]":
    import jax

    from internvideo_jax.data import pipeline
    from internvideo_jax.evaluation import runner

    data = run.eval_data
    if data is None or not _has_clips(data) or run.train.eval_every is None:
        return {}
    evaluators = run.stage.evaluators()
    if not evaluators:
        raise ValueError(
            "expected no eval_data for a stage without evaluation; unset config.train.eval_every"
        )

    for evaluator in evaluators.values():
        # Not only after hours of training.
        pipeline.check_readable(data, evaluator.fields)

    def evaluation(evaluator: "Evaluator") -> "Evaluation":
        return lambda variables: runner.evaluate(
            evaluator,
            variables,
            pipeline.eval_batches(
                data,
                evaluator.fields,
                batch_size=run.train.batch_size,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
        )

    return {name: evaluation(evaluator) for name, evaluator in evaluators.items()}


def _has_clips(data: "DataConfig") -> bool:
    return any((data.annotations, data.shards, data.tfds, data.mixture))
