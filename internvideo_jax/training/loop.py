"""The one training loop."""

import collections
import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from internvideo_jax.files import write_json
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES, Rules
from internvideo_jax.training.checkpoints import Checkpoints, RunCheckpointError
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.metrics import (
    LOSS_CURVE,
    METRICS,
    MetricsWriter,
    Progress,
    average,
    plot_losses,
)
from internvideo_jax.training.process import locked, preemption
from internvideo_jax.training.stage import (
    Batch,
    Evaluation,
    HostBatch,
    PyTree,
    Stage,
    Variables,
)
from internvideo_jax.training.state import TrainState, abstract_state, create_state, load_frozen
from internvideo_jax.training.step import abstract_batch, make_train_step

CHECKPOINTS = "checkpoints"
# Among them, written once: the parameters that are not trained.
FIXED = "fixed"
MODEL = "model"
MODEL_EMA = "model_ema"
BAD_EXAMPLES = "bad_examples.json"

# Clips travel as bytes or normalised already.
_CLIP_DTYPES = {np.dtype(np.uint8), np.dtype(np.float32)}

# Steps that may be under way at once: one on the device, one waiting for it.
_IN_FLIGHT = 2


class NonFiniteError(ValueError):
    """Too many steps in a row with a loss or gradient that is not finite."""


def train(
    stage: Stage,
    config: TrainConfig,
    batches: Callable[[int], Iterator[HostBatch]],
    workdir: Path,
    *,
    run_config: Mapping[str, Any],
    steps_per_epoch: int | None = None,
    evaluations: Mapping[str, Evaluation] | None = None,
    devices: Sequence[jax.Device] | None = None,
    rules: Rules = DEFAULT_RULES,
) -> bool:
    """Trains until the last step or a preemption notice, from the newest checkpoint if there is.

    A run that was killed and started again ends with the parameters of an unbroken one, bit for
    bit on the same number of devices: state and draws follow from the step, and so must the data.

    Args:
      stage: what to train.
      config: how.
      batches: endless batches of this process from a step on: the same step gives the same batch.
        Of their fields the stage's go to the devices; `index` (dataset index of each row) and
        `replaced` (rows that stand in for broken clips) are for reports.
      workdir: folder of the run. It gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`,
        `loss.png`, `model/` and `model_ema/`; with several processes all must see it.
      run_config: JSON-ready config of the run; one that resumes must have the same, but for
        `config.FREE_FIELDS`.
      steps_per_epoch: needed if the config counts in epochs.
      evaluations: called every `config.eval_every` steps and after the last one; the metrics of
        NAME are called `NAME/metric`, those of averaged weights `NAME_ema/metric`.
      devices: the devices to use; all by default.
      rules: logical to mesh axes.

    Returns:
      True when the run is complete, False when it stopped after a checkpoint because of SIGTERM.

    Raises:
      BlockingIOError: another run is using `workdir`.
      NonFiniteError: `config.max_bad_steps` in a row; `bad_examples.json` lists their rows.
      ConfigMismatchError: the run in `workdir` had another config.
      RunCheckpointError: a checkpoint cannot be written, or none of them read.
      ValueError: the config does not fit the mesh, or a batch the stage.
    """
    lengths = config.lengths(steps_per_epoch)
    devices = list(jax.devices() if devices is None else devices)
    mesh = make_mesh(config.mesh, devices)
    check_batch_fits(config, mesh)
    is_main = jax.process_index() == 0
    workdir = Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)

    with contextlib.ExitStack() as stack:
        if is_main:
            stack.enter_context(locked(workdir))
        is_preempted = stack.enter_context(preemption())
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(nn.logical_axis_rules(rules))

        # What a step is, and where the run stands.
        target, fixed_target = abstract_state(stage, config, mesh, rules)
        schedule = config.schedule(lengths)
        train_step = make_train_step(stage, config, schedule, target, mesh, rules)
        checkpoints = stack.enter_context(
            Checkpoints(workdir / CHECKPOINTS, run_config, keep=config.checkpoint.keep)
        )
        restored = checkpoints.restore(target)
        if restored is None:
            state, fixed = create_state(stage, config, mesh, rules)
        else:
            state, fixed = restored, fixed_target
        if jax.tree.leaves(fixed):
            with Checkpoints(workdir / CHECKPOINTS / FIXED, run_config, keep=1) as once:
                if restored is None:
                    once.remove_all()
                    once.save(0, fixed, {})
                elif (fixed := once.restore(fixed_target)) is None:
                    raise RunCheckpointError(
                        f"{once.directory} is gone, which held the parameters that are not"
                        " trained; restore it from a copy, or start anew in another workdir"
                    )
        start = saved_step = int(state.step)
        progress = Progress(lengths.total, start, config.rows, visible=is_main)
        stack.callback(progress.close)
        progress.say(_headline(state, fixed, mesh, config, lengths.total))
        if start == lengths.total and (workdir / MODEL).exists():
            progress.say(f"{workdir} holds a complete run: nothing is left to train")
            return True

        # What a step needs.
        frozen = load_frozen(stage, mesh, rules)
        inputs = abstract_batch(stage, config.rows, mesh, rules)
        data = batches(start)
        stack.callback(getattr(data, "close", lambda: None))
        writer = None
        if is_main:
            writer = stack.enter_context(contextlib.closing(MetricsWriter(workdir, start)))
        bad_steps = _BadSteps(config, workdir)
        window: list[dict[str, jax.Array]] = []
        replaced = 0

        def log(step: int, values: dict[str, float]) -> None:
            if writer is not None:
                writer.write(step, values)
            progress.show(step, values)

        progress.say("the first step compiles, and waits for the first clips")
        for step in range(start + 1, lengths.total + 1):
            # A step: nothing in here waits for the one before it.
            began = time.perf_counter()
            host_batch = next(data)
            waited = time.perf_counter() - began
            with jax.transfer_guard("disallow"):
                batch = _to_devices(host_batch, inputs)
                state, metrics = train_step(state, fixed, frozen, batch)
            if step == start + 1:
                # The first one compiles.
                jax.block_until_ready(metrics)
                progress.restart_clock()
            else:
                progress.step(waited)
            window.append(metrics)
            replaced += int(np.sum(host_batch.get("replaced", 0)))
            bad_steps.add(step, metrics, host_batch)
            is_last = step == lengths.total

            if step % config.log_every == 0 or is_last:
                bad_steps.check()
                values = average(jax.device_get(window)) | {"replaced": float(replaced)}
                log(step, values | progress.rates())
                window.clear()
                replaced = 0

            if evaluations and config.eval_every and (step % config.eval_every == 0 or is_last):
                log(step, _evaluate(evaluations, state, fixed))
                progress.restart_clock()

            must_stop = is_preempted(step)
            if step % config.checkpoint.every_steps == 0 or is_last or must_stop:
                bad_steps.check()
                position = {"step": step, "examples": step * config.batch_size, "seed": config.seed}
                checkpoints.save(step, state, position)
                saved_step = step
            if must_stop and not is_last:
                checkpoints.wait()
                progress.say(f"stopped by SIGTERM after step {saved_step}; start again to go on")
                return False

        checkpoints.wait()
        _save_model(stage, state.variables(fixed), workdir / MODEL)
        if (averaged := state.averaged_variables(fixed)) is not None:
            _save_model(stage, averaged, workdir / MODEL_EMA)
        if is_main:
            plot_losses(workdir / METRICS, workdir / LOSS_CURVE)
        return True


def check_batch_fits(config: TrainConfig, mesh: Mesh) -> None:
    """Checks that every device gets the same number of rows of every micro-batch.

    Raises:
      ValueError: it does not.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.rows // config.accumulation
    if rows % ways or config.batch_size % jax.process_count():
        raise ValueError(
            f"expected micro-batches that the {ways} devices of data*fsdp and the"
            f" {jax.process_count()} processes divide, found {rows} rows"
            f" (batch_size={config.batch_size} * num_sample={config.num_sample} / accumulation="
            f"{config.accumulation}); change the batch or the mesh"
        )


class _BadSteps:
    """Counts non-finite steps a little behind the device, so that it need not wait for the host."""

    def __init__(self, config: TrainConfig, workdir: Path) -> None:
        self._config = config
        self._target = workdir / BAD_EXAMPLES
        self._pending: collections.deque[tuple[int, Any, Any]] = collections.deque()
        self._streak: list[tuple[int, Any]] = []

    def add(self, step: int, metrics: dict[str, jax.Array], batch: HostBatch) -> None:
        """Notes a step that has been started; looks at those that should be done."""
        self._pending.append((step, metrics["bad_steps"], batch.get("index")))
        self.check(_IN_FLIGHT)

    def check(self, in_flight: int = 0) -> None:
        """Looks at all noted steps but the last few.

        Raises:
          NonFiniteError: too many bad ones in a row.
        """
        while len(self._pending) > in_flight:
            step, count, index = self._pending.popleft()
            num_bad = int(jax.device_get(count))
            self._streak = [*self._streak, (step, index)] if num_bad else []
            if num_bad >= self._config.max_bad_steps:
                self._stop(num_bad)

    def _stop(self, num_bad: int) -> None:
        rows = []
        for step, index in self._streak:
            if index is not None and jax.process_count() > 1:
                index = multihost_utils.process_allgather(index, tiled=True)
            rows.append(
                {
                    "step": step,
                    "first_example": (step - 1) * self._config.batch_size,
                    "index": None if index is None else np.asarray(index).tolist(),
                }
            )
        if jax.process_index() == 0:
            write_json(self._target, rows)
        raise NonFiniteError(
            f"the loss or its gradients were not finite in {num_bad} steps in a row, the last of"
            f" them step {self._streak[-1][0]}; {self._target} lists the dataset indices of their"
            " rows. Check these clips, or lower the learning rate"
        )


def _to_devices(host_batch: HostBatch, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> Batch:
    """The stage's fields of a batch, each process giving its rows."""
    if any(name not in host_batch for name in inputs):
        raise ValueError(
            f"expected batches with the fields {', '.join(inputs)}, found"
            f" {', '.join(host_batch)}; the data config does not fit the stage"
        )
    batch = {}
    for name, like in inputs.items():
        array = host_batch[name]
        shape = (like.shape[0] // jax.process_count(), *like.shape[1:])
        kinds = {np.dtype(like.dtype), array.dtype}
        if array.shape != shape or (len(kinds) > 1 and kinds != _CLIP_DTYPES):
            raise ValueError(
                f"expected batches with {name} {np.dtype(like.dtype).name}{list(shape)}, found"
                f" {array.dtype.name}{list(array.shape)}; the data config does not fit the stage"
            )
        batch[name] = jax.make_array_from_process_local_data(like.sharding, array, like.shape)
    return batch


def _evaluate(
    evaluations: Mapping[str, Evaluation], state: TrainState, fixed: PyTree
) -> dict[str, float]:
    results: dict[str, float] = {}
    for name, evaluation in evaluations.items():
        of_weights = {
            name: state.variables(fixed),
            f"{name}_ema": state.averaged_variables(fixed),
        }
        for prefix, variables in of_weights.items():
            if variables is not None:
                results |= {f"{prefix}/{k}": v for k, v in evaluation(variables).items()}
    return results


def _save_model(stage: Stage, variables: Variables, target: Path) -> None:
    """Writes a model so that the directory is whole or absent."""
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("removed the partial model")
    stage.save(variables, partial)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("saved the model")
    if jax.process_index() == 0:
        partial.rename(target)


def _headline(state: TrainState, fixed: PyTree, mesh: Mesh, config: TrainConfig, total: int) -> str:
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((state.params, fixed)))
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    place = "from the start" if int(state.step) == 0 else f"from step {int(state.step)}"
    return (
        f"training {count:,} parameters on {mesh.size} {mesh.devices.flat[0].platform} device(s)"
        f" ({axes}), {config.rows} rows per step, {total} steps, {place}"
    )
