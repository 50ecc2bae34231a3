"""The one training loop."""

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES, Rules
from internvideo_jax.training.bad_steps import BadSteps
from internvideo_jax.training.batches import abstract_batch, check_batch_fits, to_devices
from internvideo_jax.training.checkpoints import Checkpoints, RunCheckpointError
from internvideo_jax.training.config import Lengths, TrainConfig
from internvideo_jax.training.metrics import (
    LOSS_CURVE,
    METRICS,
    Progress,
    average,
    read_metrics,
)
from internvideo_jax.training.outputs import (
    MODEL,
    MODEL_EMA,
    training_metadata,
    write_missing,
)
from internvideo_jax.training.process import Notice, Stopped, claimed, preemption
from internvideo_jax.training.profiling import PROFILE, Profile
from internvideo_jax.training.stage import (
    Batches,
    Evaluation,
    HostBatch,
    PyTree,
    Stage,
)
from internvideo_jax.training.state import (
    TrainState,
    abstract_state,
    count_trained,
    create_state,
    load_frozen,
)
from internvideo_jax.training.step import compile_step, make_train_step
from internvideo_jax.training.trackers import (
    TENSORBOARD,
    WANDB,
    WANDB_ID,
    Tracker,
    check_trackers,
    trackers,
)
from internvideo_jax.training.watchdog import Watchdog

CHECKPOINTS = "checkpoints"
# Among them, written once: the parameters that are not trained.
FIXED = "fixed"
_OUTPUTS = (
    *(CHECKPOINTS, METRICS, TENSORBOARD, WANDB, WANDB_ID, LOSS_CURVE, MODEL, MODEL_EMA),
    PROFILE,
)


def train(
    stage: Stage,
    config: TrainConfig,
    batches: Callable[[int], Iterator[HostBatch]],
    workdir: Path,
    *,
    run_config: Mapping[str, Any],
    steps_per_epoch: int | None = None,
    kinds: Mapping[str, Batches] | None = None,
    evaluations: Mapping[str, Evaluation] = MappingProxyType({}),
    devices: Sequence[jax.Device] | None = None,
    rules: Rules = DEFAULT_RULES,
    notice: Notice | None = None,
    profile_steps: tuple[int, int] | None = None,
    origin: Mapping[str, Any] = MappingProxyType({}),
) -> bool:
    """Trains until the last step or a notice to stop, from the newest checkpoint if there is.

    A run that was killed and started again ends with the parameters of an unbroken one, bit for
    bit on the same number of devices: state and draws follow from the step, and so must the data.
    It is complete when `loss.png` and its models are there; those that a start finds missing are
    made from the last checkpoint. A start that fails before the first step leaves nothing.

    Args:
      stage: what to train.
      config: how.
      batches: endless batches of this process from a step on: the same step gives the same batch.
        Of their fields the stage's go to the devices; `index` (dataset index of each row) and
        `replaced` (rows that stand in for broken clips) are for reports; `media` says of which kind
        they are where there are several.
      workdir: folder of the run. It gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`,
        `loss.png`, `model/` and `model_ema/`; with several processes all must see it.
      run_config: JSON-ready config of the run; one that resumes must have the same, but for
        `config.FREE_FIELDS`.
      steps_per_epoch: needed if the config counts in epochs.
      kinds: the batches by their kind of media, where these differ; each has a step of its own, all
        of which are compiled before the first one. By default all are of the stage's own kind.
      evaluations: called every `config.eval_every` steps and after the last one; the metrics of
        NAME are called `NAME/metric`, those of averaged weights `NAME_ema/metric`. They get the
        variables, and a function that takes how far they are.
      devices: the devices to use; all by default.
      rules: logical to mesh axes.
      notice: of SIGTERM, SIGHUP and Ctrl-C; by default of those that come during the call.
      profile_steps: the first and the last step of a trace, which goes to `profile/` in `workdir`.
      origin: JSON-ready entries of what saved models tell of their training, besides steps, last
        metrics, date and version.

    Returns:
      True when the run is complete, False when it stopped because of SIGTERM or SIGHUP. What was
      done by then is in a checkpoint.

    Raises:
      KeyboardInterrupt: it stopped alike because of Ctrl-C; a second one counts at once.
      BlockingIOError: another run is using `workdir`.
      NonFiniteError: `config.max_bad_steps` in a row; `bad_examples.json` lists their rows.
      ConfigMismatchError: the run in `workdir` had another config.
      RunCheckpointError: a checkpoint cannot be written, or none of them read.
      OSError: another output cannot be written; it is named.
      ValueError: the config does not fit the mesh, or a batch the stage; a tracker is not
        installed; `workdir` holds a model without checkpoints.
    """
    lengths = config.lengths(steps_per_epoch)
    devices = list(jax.devices() if devices is None else devices)
    mesh = make_mesh(config.mesh, devices)
    kinds = kinds or {"": Batches(stage, config.rows)}
    for kind in kinds.values():
        check_batch_fits(config, mesh, kind)
    check_trackers(config.trackers)
    is_main = jax.process_index() == 0
    workdir = Path(workdir).absolute()
    _check_workdir(workdir)

    with contextlib.ExitStack() as stack:
        notice = notice or stack.enter_context(preemption())
        # Closed last, as its processes may take their time.
        loading = stack.enter_context(contextlib.ExitStack())
        keep_files = stack.enter_context(_claimed(workdir))
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(nn.logical_axis_rules(rules))
        name = f"process {jax.process_index()} of {jax.process_count()}"
        watchdog = Watchdog(config.hang_timeout, name)
        if jax.process_count() > 1:
            stack.enter_context(watchdog)
        progress = Progress(lengths.total, visible=is_main, on_begin=watchdog.begin)
        stack.callback(progress.close)
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir / CHECKPOINTS, run_config, keep=config.checkpoint.keep, say=progress.say
            )
        )
        done = saved = 0

        def log(step: int, values: dict[str, float]) -> None:
            for tracker in opened:
                tracker.write(step, values)
            progress.show(step, values)
            progress.restart_clock()

        try:
            with notice.interrupting():
                # What a step is, and where the run stands.
                target, fixed_target = abstract_state(stage, config, mesh, rules)
                schedule = config.schedule(lengths)
                train_steps = {
                    name: make_train_step(kind.stage, config, schedule, target, mesh, rules)
                    for name, kind in kinds.items()
                }
                progress.begin("looking for a checkpoint")
                restored = checkpoints.restore(target)
                if restored is None:
                    progress.begin("making the first weights", aloud=True)
                    state, fixed = create_state(stage, config, mesh, rules)
                else:
                    keep_files()
                    state, fixed = restored, fixed_target
                if jax.tree.leaves(fixed):
                    directory = workdir / CHECKPOINTS / FIXED
                    fixed = _kept_fixed(fixed, directory, run_config, is_new=restored is None)
                start = done = saved = int(state.step)
                progress.go_on_from(start)
                progress.say(_headline(stage, state, fixed, mesh, config, lengths.total))
                save_every = config.checkpoint_every(lengths)
                if save_every < config.checkpoint.every_steps:
                    progress.say(
                        f"a checkpoint every {save_every} steps: the run is no longer than"
                        f" train.checkpoint.every_steps={config.checkpoint.every_steps}"
                    )
                opened: list[Tracker] = []
                if is_main:
                    opened = stack.enter_context(
                        trackers(config.trackers, workdir, start, run_config)
                    )
                if _is_evaluation_missing(evaluations, config, lengths, workdir, start):
                    log(start, _evaluate(evaluations, state, fixed, progress))

                # What a step needs.
                if start < lengths.total:
                    progress.begin("loading the frozen models")
                    frozen = load_frozen(stage, mesh, rules)
                    inputs = {
                        name: abstract_batch(kind.stage, kind.rows, mesh, rules)
                        for name, kind in kinds.items()
                    }
                    data = batches(start)
                    loading.callback(getattr(data, "close", lambda: None))
                    for number, name in enumerate(kinds if len(kinds) > 1 else (), start=1):
                        progress.begin(
                            f"compiling the step of {name} ({number} of {len(kinds)})", aloud=True
                        )
                        train_steps[name] = compile_step(
                            train_steps[name], state, fixed, frozen, inputs[name]
                        )
                    progress.begin("waiting for the first clips", aloud=True)
            bad_steps = BadSteps(config, workdir)
            profile = stack.enter_context(Profile(profile_steps, workdir / PROFILE))
            window: list[dict[str, jax.Array]] = []
            replaced = 0

            for step in range(start + 1, lengths.total + 1):
                # A step: nothing in here waits for the one before it, unless it is traced.
                profile.before(step)
                began = time.perf_counter()
                with notice.interrupting():
                    host_batch = next(data)
                waited = time.perf_counter() - began
                is_first, is_last = step == start + 1, step == lengths.total
                compiles = is_first and len(kinds) == 1
                task = "compiling the first step" if compiles else f"step {step}/{lengths.total}"
                progress.begin(task, aloud=compiles)
                name = _kind(host_batch, kinds)
                traced = jax.profiler.StepTraceAnnotation("train", step_num=step)
                with traced, jax.transfer_guard("disallow"):
                    batch = to_devices(host_batch, inputs[name])
                    state, metrics = train_steps[name](state, fixed, frozen, batch)
                if is_first:
                    jax.block_until_ready(metrics)
                    keep_files()
                    progress.restart_clock()
                else:
                    progress.step(waited, kinds[name].rows)
                if profile.after(step, metrics):
                    progress.say(f"traced up to step {step} -> {workdir / PROFILE}")
                done = step
                notice.is_unsaved = True
                window.append(metrics)
                replaced += int(np.sum(host_batch.get("replaced", 0)))
                bad_steps.add(step, metrics, host_batch)

                if step % config.log_every == 0 or is_last:
                    bad_steps.check()
                    values = average(jax.device_get(window)) | {"replaced": _sum_of_all(replaced)}
                    log(step, values | progress.rates())
                    window.clear()
                    replaced = 0
                elif is_first or progress.is_silent():
                    progress.show(step, average(jax.device_get(window)) | progress.rates())

                if _evaluates(evaluations, config, lengths, step):
                    with notice.interrupting():
                        values = _evaluate(evaluations, state, fixed, progress)
                    log(step, values)

                if step % save_every == 0 or is_last:
                    bad_steps.check()
                    progress.begin("saving a checkpoint")
                    checkpoints.save(step, state, _position(config, step))
                    saved = step
                notice.check(step)

            checkpoints.wait()
            notice.is_unsaved = False
            with notice.interrupting():
                metadata = training_metadata(origin, lengths.total, workdir)
                is_new = write_missing(stage, state, fixed, workdir, metadata, progress)
                if not is_new and start == lengths.total:
                    progress.say(f"{workdir} holds a complete run: nothing is left to train")
            return True
        except Stopped:
            if done > saved:
                bad_steps.check()
                progress.begin("saving a checkpoint")
                checkpoints.save(done, state, _position(config, done))
            checkpoints.wait()
            kept = f"after step {done}, which is kept" if done else "before the first step"
            progress.say(f"stopped by {notice.name} {kept}; start again to go on")
            notice.is_unsaved = False
            if notice.signal == signal.SIGINT:
                raise
            return False


def _check_workdir(workdir: Path) -> None:
    models = [name for name in (MODEL, MODEL_EMA) if (workdir / name).exists()]
    steps = [path for path in (workdir / CHECKPOINTS).glob("*") if path.name.isdigit()]
    if models and not steps:
        raise ValueError(
            f"{workdir}: expected the checkpoints of the run that made {' and '.join(models)},"
            " found none; name another workdir, or remove them to train anew"
        )


@contextlib.contextmanager
def _claimed(workdir: Path) -> Iterator[Callable[[], None]]:
    """As `process.claimed`; of several processes the main one locks, and the folder stays."""
    if jax.process_index() > 0:
        yield lambda: None
        return
    with claimed(workdir, _OUTPUTS) as keep:
        if jax.process_count() > 1:
            keep()
        # What killed processes left of files and models.
        for name in (METRICS, LOSS_CURVE, MODEL):
            for partial in workdir.glob(f".{name}*.partial"):
                if partial.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink(missing_ok=True)
        yield keep


def _kept_fixed(
    fixed: PyTree, directory: Path, run_config: Mapping[str, Any], *, is_new: bool
) -> PyTree:
    """The parameters that are not trained: written once, in a new run, and read in later ones."""
    with Checkpoints(directory, run_config, keep=1) as once:
        if is_new:
            once.remove_all()
            once.save(0, fixed, {})
            return fixed
        if (restored := once.restore(fixed)) is not None:
            return restored
        raise RunCheckpointError(
            f"{once.directory} is gone, which held the parameters that are not trained; restore it"
            " from a copy, or start anew in another workdir"
        )


def _position(config: TrainConfig, step: int) -> dict[str, int]:
    return {"step": step, "examples": step * config.batch_size, "seed": config.seed}


def _evaluates(
    evaluations: Mapping[str, Evaluation], config: TrainConfig, lengths: Lengths, step: int
) -> bool:
    if not evaluations or config.eval_every is None:
        return False
    return step % config.eval_every == 0 or step == lengths.total


def _is_evaluation_missing(
    evaluations: Mapping[str, Evaluation],
    config: TrainConfig,
    lengths: Lengths,
    workdir: Path,
    start: int,
) -> bool:
    """Whether a notice to stop has kept the checkpoint's step from being evaluated."""
    if start == 0 or not _evaluates(evaluations, config, lengths, start):
        return False
    logged = [line for line in read_metrics(workdir / METRICS) if line["step"] == start]
    names = {key.partition("/")[0] for line in logged for key in line}
    is_missing = not names >= evaluations.keys()
    if jax.process_count() > 1:
        # What process 0 has written, others may see later.
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(is_missing)))
    return is_missing


def _sum_of_all(count: int) -> float:
    """The sum of what the processes have counted, each for itself."""
    if jax.process_count() > 1:
        count = int(np.sum(multihost_utils.process_allgather(np.asarray(count))))
    return float(count)


def _kind(host_batch: HostBatch, kinds: Mapping[str, Batches]) -> str:
    """Which kind a batch is of."""
    return str(host_batch["media"][0]) if len(kinds) > 1 else next(iter(kinds))


def _evaluate(
    evaluations: Mapping[str, Evaluation], state: TrainState, fixed: PyTree, progress: Progress
) -> dict[str, float]:
    results: dict[str, float] = {}
    for name, evaluation in evaluations.items():
        of_weights = {
            name: state.variables(fixed),
            f"{name}_ema": state.averaged_variables(fixed),
        }
        for prefix, variables in of_weights.items():
            if variables is None:
                continue

            def say(text: str, prefix: str = prefix) -> None:
                progress.begin(f"evaluating {prefix}: {text}")

            say("starting")
            results |= {f"{prefix}/{k}": v for k, v in evaluation(variables, say).items()}
    return results


def _headline(
    stage: Stage, state: TrainState, fixed: PyTree, mesh: Mesh, config: TrainConfig, total: int
) -> str:
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((state.params, fixed)))
    trained = count_trained(state.params, config.trainable(stage))
    counted = f"{count:,}" if trained == count else f"{trained:,} of {count:,}"
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    place = "from the start" if int(state.step) == 0 else f"from step {int(state.step)}"
    return (
        f"training {counted} parameters on {mesh.size} {mesh.devices.flat[0].platform} device(s)"
        f" ({axes}), {config.rows} rows per step, {total} steps, {place}"
    )
