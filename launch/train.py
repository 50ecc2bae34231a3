"""`internvideo-jax train`: trains a stage from a config, or says what that would take."""

import argparse
import contextlib
import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import hosts
from internvideo_jax.launch.common.run_config import Run, parse_run, print_config
from internvideo_jax.launch.common.run_messages import (
    name_unreadable,
    say_epoch,
    say_held_out,
    say_overlap,
    say_rate,
    say_what_next,
)
from internvideo_jax.parallel import aot
from internvideo_jax.training import process

if TYPE_CHECKING:
    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.data.pipeline import Fields
    from internvideo_jax.data.watchdog import BackgroundIterator
    from internvideo_jax.evaluation.runner import Evaluator
    from internvideo_jax.launch.compilation.dry_run import Report
    from internvideo_jax.training.config import TrainConfig
    from internvideo_jax.training.stage import Batches, Evaluation, HostBatch, Variables

_log = logging.getLogger(__name__)

SUMMARY = "train: stage 1, distillation, fine-tuning, probing, stage 2, CLIP"

_EXIT_CODES: dict[int, int] = {
    signal.SIGTERM: arguments.EXIT_PREEMPTED,
    signal.SIGHUP: arguments.EXIT_PREEMPTED,
    signal.SIGINT: 128 + signal.SIGINT,
}

EPILOG = """\
WORKDIR gets checkpoints/, metrics.jsonl, tensorboard/ and loss.png, and at the end model/, which
all other commands take (with averaged weights also model_ema/). Started again with the same config,
a run goes on from its newest checkpoint. SIGTERM, a closed terminal (SIGHUP) and Ctrl-C end in a
checkpoint, with the exit codes 42, 42 and 130; a second Ctrl-C ends at once. Under nohup, a run
goes on when the terminal is closed; so it does when only the reader of its messages (| head) ends.
On many hosts the same command runs on each. They find each other on TPU slices, in GKE and as tasks
of SLURM, elsewhere by JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0, JAX_NUM_PROCESSES and
JAX_PROCESS_ID: docs/tpu_quickstart.md.
What a config holds: docs/training.md; classes of your own: docs/your_classes.md.

examples:
  internvideo-jax train --config=configs/stage1/finetune.py:b14,custom --workdir=runs/mine \\
      --config.stage.initial=models/b14-k400 --config.data.annotations=LIST_OR_FOLDER
  internvideo-jax train --config=configs/stage1/finetune.py:b14,k400 --workdir=runs/k400 \\
      --config.data.annotations=train.csv --config.data.root=videos
  internvideo-jax train --config=configs/stage1/pretrain.py:1b --dry_run --topology=v5e:16x16

In Python: internvideo_jax.training.loop.train.
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0, or 42 after SIGTERM or SIGHUP. Ctrl-C is a KeyboardInterrupt."""
    parser = arguments.make_parser("train", SUMMARY, EPILOG)
    arguments.add_config_argument(parser)
    parser.add_argument("--workdir", help="folder of the run; made if need be")
    parser.add_argument(
        "--profile_steps",
        type=_step_range,
        metavar="FIRST:LAST",
        help="trace these steps to WORKDIR/profile, for xprof",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="train nothing: print the memory per device and the schedule, and what training"
        " would refuse",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="dry run with a row for each parameter"
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="train nothing: print every field of the config that results, as options to paste",
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
    if args.print_config:
        config = arguments.parse_config(args, leftover)
        print_config(config, arguments.parse_config(args, []))
        return 0
    if not args.dry_run and args.workdir is None:
        raise arguments.UsageError("expected --workdir=DIR for the run's files, or --dry_run")
    if args.topology:
        code = arguments.use_tpu_compiler("train", argv)
        if code is not None:
            return code

    if args.dry_run:
        report = dry_run(parse_run(arguments.parse_config(args, leftover)), args.topology)
        print(report.text(verbose=args.verbose), flush=True)
        if report.problems:
            raise arguments.UsageError("\n".join(report.problems))
        return 0
    if "://" in args.workdir:
        raise arguments.UsageError(
            f"--workdir={args.workdir}: expected a folder of the file system; mount the bucket"
        )
    workdir = Path(args.workdir)
    if workdir.exists() and not workdir.is_dir():
        raise arguments.UsageError(f"--workdir={workdir}: expected a folder, found a file")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hosts.joined(_EXIT_CODES))
        except arguments.Terminated as ended:
            return _stopped(signal.Signals(ended.signal).name)
        hosts.check_shared(workdir)
        notice = stack.enter_context(process.preemption())
        stack.enter_context(process.enforced(notice, _EXIT_CODES))
        try:
            with notice.interrupting():
                run = parse_run(arguments.parse_config(args, leftover))
            profiled = args.profile_steps
            if not train(run, workdir, notice, name=args.config, profile_steps=profiled):
                return arguments.EXIT_PREEMPTED
            say_what_next(run, workdir)
            return 0
        except process.Stopped:
            if notice.signal == signal.SIGINT:
                raise
            return _stopped(notice.name)


def _step_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(
            f"expected FIRST:LAST, the numbers of steps from 1, found {text!r}"
        )
    return int(first), int(last)


def _stopped(how: str) -> int:
    """Says that a signal was there before the first step; returns the exit code."""
    print(f"stopped by {how} before the first step; start again to go on", file=sys.stderr)
    return arguments.EXIT_PREEMPTED


def train(
    run: Run,
    workdir: Path,
    notice: process.Notice | None = None,
    *,
    name: str = "",
    profile_steps: tuple[int, int] | None = None,
) -> bool:
    """Trains; returns False if a signal stopped it. Errors are those of `training.loop.train`.

    Args:
      run: what to train.
      workdir: folder of the run.
      notice: of SIGTERM, SIGHUP and Ctrl-C.
      name: of the config, which the trained model is saved with.
      profile_steps: the first and the last step of a trace.

    Raises:
      process.Stopped: `notice` came before the loop began.
    """
    with notice.interrupting() if notice else contextlib.nullcontext():
        import jax

        from internvideo_jax.data import pipeline
        from internvideo_jax.training import loop
        from internvideo_jax.training.trackers import check_trackers

        check_trackers(run.train.trackers)
        steps_per_epoch = pipeline.steps_per_epoch(run.data, run.train.batch_size)
        config = run.train.with_eval_every(steps_per_epoch)
        say_held_out(run)
        say_epoch(run, steps_per_epoch)
        say_rate(config, steps_per_epoch)
        clips = pipeline.fingerprint(run.data)
        run_config = run.as_json | {"clips": clips}
        evaluations = _evaluations(run, config)
        kinds = run.kinds()

    def batches(step: int) -> "Iterator[HostBatch]":
        return pipeline.train_batches(
            run.data,
            _fields(kinds),
            batch_size=run.train.batch_size,
            seed=run.train.seed,
            start=step * run.train.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return loop.train(
        run.stage,
        config,
        batches,
        workdir,
        run_config=run_config,
        steps_per_epoch=steps_per_epoch,
        kinds=kinds,
        evaluations=evaluations,
        notice=notice,
        profile_steps=profile_steps,
        origin={
            "config": name,
            "kind": run.as_json["stage"]["kind"],
            "initial": run.as_json["stage"].get("initial"),
            "data": {"names": [member.name for member in run.data.members], **clips},
        },
    )


def _fields(kinds: "Mapping[str, Batches]") -> dict[str, tuple[str, ...]]:
    """The fields of batches by the kind of their media."""
    return {name: tuple(kind.stage.example_batch(1)) for name, kind in kinds.items()}


def dry_run(run: Run, topology_name: str | None = None) -> "Report":
    """The report of `dry_run.describe`, on this machine's devices or a described TPU slice."""
    import jax

    from internvideo_jax.data import pipeline
    from internvideo_jax.launch.compilation.dry_run import describe, device_memory
    from internvideo_jax.parallel.mesh import make_mesh

    topology = aot.topology(topology_name) if topology_name else None
    devices = topology.devices if topology else jax.devices()
    config, steps_per_epoch = run.train, None
    if run.data.has_clips:
        steps_per_epoch = pipeline.steps_per_epoch(run.data, config.batch_size)
        config = config.with_eval_every(steps_per_epoch)
        say_held_out(run)
        say_epoch(run, steps_per_epoch)
        say_rate(config, steps_per_epoch)
    report = describe(
        run.stage,
        config,
        make_mesh(config.mesh, devices),
        steps_per_epoch=steps_per_epoch,
        kinds=run.kinds(),
        memory_limit=topology.chip.hbm_bytes if topology else device_memory(devices),
    )
    # Models and clips may lie on the machine that has the topology.
    if topology is None:
        checks: list[Callable[[], object]] = [run.stage.check_weights]
        if run.data.has_clips:
            fields = _fields(run.kinds())
            checks.append(functools.partial(_try_clips, run.data, fields, "train on"))
            checks.append(functools.partial(_try_evaluation_clips, run, config))
        for check in checks:
            try:
                check()
            except (ValueError, OSError) as error:
                # What several checks find is said once.
                if (problem := str(error)) not in report.problems:
                    report.problems.append(problem)
    return report


def _try_evaluation_clips(run: Run, config: "TrainConfig") -> None:
    if evaluators := _evaluators(run, config):
        assert run.eval_data is not None
        fields = dict.fromkeys(name for e in evaluators.values() for name in e.fields)
        _try_clips(run.eval_data, tuple(fields), "evaluate on")
        say_overlap(run)


def _try_clips(data: "DataConfig", fields: "Fields", purpose: str) -> None:
    """Names those of some clips that cannot be read.

    Raises:
      ValueError: none of them can.
    """
    from internvideo_jax.data.trial import try_clips

    trial = try_clips(data, fields)
    _log.info(
        "read %d of the %d clips to %s: %d cannot be read",
        trial.tried,
        trial.total,
        purpose,
        len(trial.unreadable),
    )
    name_unreadable("cannot be read", trial.unreadable)


def _evaluators(run: Run, config: "TrainConfig") -> Mapping[str, "Evaluator"]:
    """What is evaluated during the run, by name.

    Raises:
      ValueError: there are clips to evaluate on for a stage without evaluation.
    """
    if run.eval_data is None or not run.eval_data.has_clips or config.eval_every is None:
        return {}
    evaluators = run.stage.evaluators()
    if not evaluators:
        raise ValueError(
            "expected no eval_data for a stage without evaluation; unset config.train.eval_every"
        )
    return evaluators


def _evaluations(run: Run, config: "TrainConfig") -> "dict[str, Evaluation]":
    import jax

    from internvideo_jax.data import pipeline
    from internvideo_jax.data.examples import Clips
    from internvideo_jax.data.trial import check_readable
    from internvideo_jax.evaluation import runner

    evaluators = _evaluators(run, config)
    if not evaluators:
        return {}
    data = run.eval_data
    assert data is not None
    for evaluator in evaluators.values():
        # Not only after hours of training.
        check_readable(data, evaluator.fields)
    say_overlap(run)
    clips = Clips(data)
    known: set[int] = set()

    def name_failed(errors: Mapping[int, str]) -> None:
        """Names clips that could not be read, each once in a run."""
        new = {clips.record(index).path: errors[index] for index in errors.keys() - known}
        known.update(errors)
        if jax.process_index() == 0:
            name_unreadable("left out of the evaluation", new)

    def evaluate(
        evaluator: "Evaluator", variables: "Variables", say: Callable[[str], None]
    ) -> dict[str, float]:
        batches = pipeline.eval_batches(
            data,
            evaluator.fields,
            batch_size=config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        counted = _counted(batches, say)
        return runner.evaluate(evaluator, variables, counted, on_failed=name_failed)

    return {name: functools.partial(evaluate, evaluator) for name, evaluator in evaluators.items()}


def _counted(
    batches: "BackgroundIterator[HostBatch]", say: Callable[[str], None]
) -> "Iterator[HostBatch]":
    """The batches, with a word about how many there were and will be."""
    with contextlib.closing(batches):
        for number, batch in enumerate(batches, start=1):
            say(f"batch {number} of {batches.total}")
            yield batch
