"""One training step: targets, loss and gradients per micro-batch, then the update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax.parallel.rules import Rules
from internvideo_jax.parallel.sharding import partition_spec
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.optimizer import map_paths
from internvideo_jax.training.stage import AVERAGED, Batch, Stage
from internvideo_jax.training.state import TrainState, merge

PyTree = Any
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, PyTree, PyTree, Batch], tuple[TrainState, Metrics]]


def check_step(stage: Stage, config: TrainConfig) -> None:
    """Checks that a config has what a stage's steps need.

    Raises:
      ValueError: the stage needs averaged weights or one loss over the batch, which the config has
        not.
    """
    if config.accumulation > 1 and not stage.loss_is_mean_over_rows:
        raise ValueError(
            f"train.accumulation: expected 1, as the loss of {type(stage).__name__} is over the"
            " whole batch and no mean of its micro-batches' losses, found"
            f" {config.accumulation}; use more devices or a smaller batch"
        )
    if config.ema_decay is None and stage.targets_see_averages:
        raise ValueError(
            f"train.ema_decay: expected a decay, as the targets of {type(stage).__name__} come from"
            " averaged weights, found none"
        )


def make_train_step(
    stage: Stage,
    config: TrainConfig,
    schedule: optax.Schedule,
    target: TrainState,
    mesh: Mesh,
    rules: Rules,
) -> TrainStep:
    """Builds the jitted step `(state, fixed, frozen, batch) -> (state, metrics)`.

    It donates `state`; `fixed` are the model's parameters that are not trained, `frozen` the
    teachers' variables.

    Call it under `jax.set_mesh(mesh)` and `nn.logical_axis_rules(rules)`. A non-finite loss or
    gradient leaves parameters, optimizer, averages and `extra` as they are; the step counts.

    The draws of step s come from `fold_in(key(seed), s)`. Losses and gradients of the
    `accumulation` micro-batches of a step are averaged; micro-batch i holds the rows i,
    i + accumulation, ... so that no row changes its device. Averaged weights follow the update:
    `ema = ema_decay * ema + (1 - ema_decay) * params`.

    Args:
      stage: gives targets and loss.
      config: how to train.
      schedule: learning rate by step.
      target: shapes and shardings of the state (`state.abstract_state`).
      mesh: the mesh.
      rules: logical to mesh axes.

    Returns:
      The step. Its metrics are float32 scalars: `loss`, the stage's, `grad_norm` (before clipping),
      `learning_rate`, `skipped` (0 or 1) and `bad_steps` (skipped in a row).

    Raises:
      ValueError: the stage needs averaged weights or one loss over the batch, which the config has
        not.
    """
    check_step(stage, config)
    accumulation, ema_decay = config.accumulation, config.ema_decay
    optimizer, trainable = config.unit_optimizer(stage), config.trainable(stage)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)

    def micro_step(
        state: TrainState, fixed: PyTree, frozen: PyTree, extra: PyTree, batch: Batch, key: Any
    ) -> tuple[PyTree, Metrics, PyTree]:
        """Gradients, metrics with the loss, and the new collections of one micro-batch."""
        targets_key, loss_key = jax.random.split(key)
        if stage.targets_see_averages:
            frozen = {**frozen, AVERAGED: state.averaged_variables(fixed)}
        targets = jax.lax.stop_gradient(stage.targets(frozen, batch, targets_key))

        def loss_fn(trained: PyTree) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
            return stage.loss(merge(fixed, trained), extra, batch, targets, loss_key)

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, extra)), gradients = gradient(state.params)
        # Left to itself, the compiler may replicate the gradient of a sharded parameter.
        gradients = jax.lax.with_sharding_constraint(gradients, shardings.params)
        metrics = {name: jnp.float32(value) for name, value in metrics.items()}
        return gradients, {"loss": jnp.float32(loss), **metrics}, extra

    def accumulate(
        state: TrainState, fixed: PyTree, frozen: PyTree, batch: Batch, key: Any
    ) -> tuple[PyTree, Metrics, PyTree]:
        """Means of gradients and metrics over the micro-batches; collections pass from one on."""
        if accumulation == 1:
            key = jax.random.fold_in(key, 0)
            return micro_step(state, fixed, frozen, state.extra, batch, key)
        micro_batches = jax.tree.map(lambda x: _split_rows(x, accumulation, mesh, rules), batch)

        def body(carry: Any, inputs: Any) -> tuple[Any, Metrics]:
            total, extra = carry
            index, micro_batch = inputs
            micro_key = jax.random.fold_in(key, index)
            gradients, metrics, extra = micro_step(
                state, fixed, frozen, extra, micro_batch, micro_key
            )
            return (jax.tree.map(jnp.add, total, gradients), extra), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        zeros = jax.lax.with_sharding_constraint(zeros, shardings.params)
        (total, extra), metrics = jax.lax.scan(
            body, (zeros, state.extra), (jnp.arange(accumulation), micro_batches)
        )
        gradients = jax.tree.map(lambda g: g / accumulation, total)
        return gradients, jax.tree.map(lambda m: m.mean(0), metrics), extra

    def step(
        state: TrainState, fixed: PyTree, frozen: PyTree, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gradients, metrics, extra = accumulate(state, fixed, frozen, batch, key)
        # Masked twice: frozen layers neither count in the norm nor decay.
        gradients = _mask_layers(gradients, trainable)
        grad_norm = optax.tree.norm(gradients)
        is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)

        rate = schedule(state.step)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updates = _mask_layers(updates, trainable)
        params = stage.bounded(jax.tree.map(lambda p, u: p + rate * u, state.params, updates))
        ema = state.ema
        if ema_decay is not None:
            ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, params)
        updated = state.replace(params=params, opt_state=opt_state, extra=extra, ema=ema)
        kept = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), updated, state)
        bad_steps = jnp.where(is_finite, 0, state.bad_steps + 1)
        metrics |= {
            "grad_norm": grad_norm,
            "learning_rate": jnp.float32(rate),
            "skipped": jnp.float32(~is_finite),
            "bad_steps": jnp.float32(bad_steps),
        }
        return kept.replace(step=state.step + 1, bad_steps=bad_steps), metrics

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))


def compile_step(
    step: TrainStep, state: TrainState, fixed: PyTree, frozen: PyTree, batch: PyTree
) -> TrainStep:
    """The compiled form of what `make_train_step` gave.

    Args:
      step: the step.
      state: arrays, or shapes with shardings; so are the others.
      fixed: see `make_train_step`.
      frozen: likewise.
      batch: its dtypes and shapes are the only ones that the result takes.
    """
    jitted: Any = step
    compiled: TrainStep = jitted.lower(state, fixed, frozen, batch).compile()
    return compiled


def _split_rows(x: jax.Array, parts: int, mesh: Mesh, rules: Rules) -> jax.Array:
    """`[B, ...]` to `[parts, B / parts, ...]`: part i has the rows i, i + parts, ..."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    spec = partition_spec((None, "batch") + (None,) * (x.ndim - 2), rules)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _mask_layers(tree: PyTree, trainable: Callable[[str], Any]) -> PyTree:
    """Zeros for the frozen layers of parameters that are stacked over layers."""

    def mask(path: str, leaf: jax.Array) -> jax.Array:
        is_trained = np.asarray(trainable(path))
        if is_trained.all():
            return leaf
        return jnp.where(is_trained.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)

    return map_paths(mask, tree)
