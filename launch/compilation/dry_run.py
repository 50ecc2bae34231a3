"""What a training run would need, computed from shapes alone: nothing is allocated or compiled."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax
from clu import parameter_overview
from jax.sharding import Mesh

from internvideo_jax.environment import usable_memory
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.training.batches import abstract_batch, check_batch_fits
from internvideo_jax.training.config import Lengths, TrainConfig
from internvideo_jax.training.stage import Batches, Stage
from internvideo_jax.training.state import (
    abstract_frozen,
    abstract_state,
    count_trained,
    merge,
    unsplit,
)
from internvideo_jax.training.step import check_step

PyTree = Any


@dataclasses.dataclass
class Report:
    """What a dry run found.

    Attributes:
      rows: of the parameters, one each.
      summary: lines of everything else.
      problems: what training would refuse.
    """

    rows: list[str]
    summary: list[str]
    problems: list[str]

    def text(self, *, verbose: bool = False) -> str:
        """The lines to print, the rows first if they are asked for."""
        return "\n".join([*self.rows, "", *self.summary] if verbose else self.summary)


def device_memory(devices: Sequence[jax.Device]) -> int:
    """Bytes that each of these attached devices may use; those of CPUs share the main memory."""
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return limit or usable_memory() // len(devices)


def describe(
    stage: Stage,
    config: TrainConfig,
    mesh: Mesh,
    *,
    steps_per_epoch: int | None,
    kinds: Mapping[str, Batches] | None = None,
    memory_limit: int | None = None,
) -> Report:
    """The report of a dry run; memory that is not there is one of its problems.

    Args:
      stage: what would be trained.
      config: how.
      mesh: on which devices, attached ones or a described topology's.
      steps_per_epoch: None if the data are not there; then the schedule is given in epochs.
      kinds: the batches by their kind of media; None: all of the stage's own kind.
      memory_limit: bytes of a device, to compare with; None if unknown.

    Raises:
      ValueError: the batch does not fit the mesh or the stage, or the schedule is impossible.
    """
    kinds = kinds or {"": Batches(stage, config.rows)}
    check_step(stage, config)
    for kind in kinds.values():
        check_batch_fits(config, mesh, kind)
    with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
        state, fixed = abstract_state(stage, config, mesh, DEFAULT_RULES)
        frozen = abstract_frozen(stage, mesh, DEFAULT_RULES)
    batches = {
        name: abstract_batch(kind.stage, kind.rows, mesh, DEFAULT_RULES)
        for name, kind in kinds.items()
    }
    params = merge(fixed, state.params)
    memory = {
        "parameters": params,
        "other collections": state.extra,
        "optimizer": state.opt_state,
        "averaged weights": state.ema,
        "gradients": state.params,
        "frozen models": frozen,
        "batch": max(batches.values(), key=bytes_per_device),
    }

    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    overview = parameter_overview.get_parameter_overview
    rows = ["parameters:", overview(params, include_stats="sharding")]
    trained = count_trained(state.params, config.trainable(stage))
    lines = [
        f"mesh: {axes}, {mesh.size} devices",
        f"parameters: {_count(params):,}, of which {trained:,} are trained",
    ]
    if jax.tree.leaves(frozen):
        rows += ["", "frozen models:", overview(frozen, include_stats="sharding")]
        lines.append(f"frozen models: {_count(frozen):,} parameters")
    lines += [f"note: {note}" for note in unsplit(stage, mesh, DEFAULT_RULES)]
    lines += ["", "memory per device, before activations:", *_memory_lines(memory, memory_limit)]
    micro_batches = f" in {config.accumulation} micro-batches" if config.accumulation > 1 else ""
    for name, batch in batches.items():
        of_media = f" of {name}" if len(batches) > 1 else ""
        lines += ["", f"a batch{of_media}: {kinds[name].rows} rows{micro_batches}"]
        lines += [
            f"  {field}: {x.dtype.name}{list(x.shape)}, on a device {list(_shard_shape(x))}"
            for field, x in batch.items()
        ]
    lines += ["", *_schedule_lines(config, steps_per_epoch)]
    needed = sum(bytes_per_device(tree) for tree in memory.values())
    problems = []
    if memory_limit is not None and needed > memory_limit:
        problems.append(
            f"expected at most {_gib(memory_limit)} on a device, as it has, found {_gib(needed)}"
            " before activations; take more devices, a smaller batch"
            " (--config.train.batch_size) or model"
        )
    return Report(rows, lines, problems)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _memory_lines(parts: dict[str, PyTree], limit: int | None) -> list[str]:
    sizes = {name: bytes_per_device(tree) for name, tree in parts.items()}
    sizes = {name: size for name, size in sizes.items() if size} | {"total": sum(sizes.values())}
    lines = [f"  {name:18}{size / 2**20:>14,.2f} MiB" for name, size in sizes.items()]
    if limit is not None:
        share = 100 * sizes["total"] / limit
        lines.append(f"  {'of the device':18}{limit / 2**20:>14,.2f} MiB: {share:.0f} %")
    return lines


def bytes_per_device(tree: PyTree) -> int:
    """Bytes of one device's shards of all arrays of a tree of `jax.ShapeDtypeStruct`."""
    return sum(
        math.prod(_shard_shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _shard_shape(x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    sharding: Any = x.sharding
    shape: tuple[int, ...] = sharding.shard_shape(x.shape)
    return shape


def _schedule_lines(config: TrainConfig, steps_per_epoch: int | None) -> list[str]:
    is_known = steps_per_epoch is not None or not config.counts_epochs
    # A stand-in: in epochs the schedule is (nearly) the same for any number of steps.
    per_epoch = steps_per_epoch or 1000
    lengths = config.lengths(per_epoch)
    schedule = config.schedule(lengths)
    if is_known:
        title = f"schedule: {lengths.total} steps, {lengths.warmup} of them warm-up"
        places = {step: f"step {step + 1}" for step in _milestones(lengths)}
    else:
        title = f"schedule: {config.epochs or '?'} epochs; set the data to know the steps"
        places = {step: f"epoch {step / per_epoch:.2f}" for step in _milestones(lengths)}
    return [title, *_rate_lines(schedule, places, config.rows)]


def _milestones(lengths: Lengths) -> list[int]:
    middle = (lengths.warmup + lengths.total) // 2
    steps = {0, max(lengths.warmup - 1, 0), lengths.warmup, middle, lengths.total - 1}
    return sorted(step for step in steps if step < lengths.total)


def _rate_lines(schedule: optax.Schedule, places: dict[int, str], rows: int) -> list[str]:
    """The rates at some steps, and what they are per 256 rows, as upstream's scripts give them."""
    rates = ((place, float(schedule(step))) for step, place in places.items())
    lines = (
        f"  {place:14} learning rate {rate:.4g}, per 256 rows {rate * 256 / rows:.4g}"
        for place, rate in rates
    )
    # In epochs two neighbouring steps read alike.
    return list(dict.fromkeys(lines))


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
