"""What compiling a config for a topology gives, ready for JSON."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from internvideo_jax import models
from internvideo_jax.config import from_dict
from internvideo_jax.launch.common.run_config import parse_run
from internvideo_jax.launch.compilation import tasks
from internvideo_jax.launch.compilation.kernels import kernel_cycles
from internvideo_jax.launch.compilation.text import LABEL
from internvideo_jax.models import gradient_flops
from internvideo_jax.parallel import aot, hlo, step_time
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import unsplit_dimensions
from internvideo_jax.training.state import unsplit

# Operations of a loop that a report names.
_DEAREST = 10


class Work(NamedTuple):
    """A program to compile.

    Attributes:
      task: the program.
      rows: of its global batch.
      clip: shapes of a row's clips, sounds and texts by name.
      flops: per row, by part.
    """

    task: tasks.Task
    rows: int
    clip: Mapping[str, tuple[int, ...]]
    flops: Mapping[str, int]


# A mesh; programs by name; facts of the report.
Compilation = tuple[Mesh, dict[str, Work], dict[str, Any]]


def compile_report(config: ConfigDict, topology_name: str) -> dict[str, Any]:
    """Compiles a config's programs for a topology.

    Args:
      config: of a run (`stage`, `train`, `data`, as in configs/stage1), of which the training step
        is compiled, that of each kind of media where there are several; or of a model (`model`,
        `mesh`, `batch_per_device`, `gradient`, as in configs/encoder.py), of which forward pass and
        gradients are.
      topology_name: e.g. "v5e:16x16".

    Raises:
      ValueError: a field is missing or wrong, or there is no such topology.
    """
    topology = aot.topology(topology_name)
    mesh, work, facts = (_training_step if "stage" in config else _model)(config, topology)
    programs, cycles = {}, kernel_cycles(topology_name.partition(":")[0])
    for name, (task, rows, clip, parts) in work.items():
        print(f"compiling the {name} program of {topology_name} ...", file=sys.stderr, flush=True)
        program = aot.compile_ahead(*task, mesh=mesh, rules=DEFAULT_RULES, kernel_cycles=cycles)
        flops = sum(parts.values())
        programs[name] = _program_report(program, topology.chip) | {
            "batch_size": rows,
            "clip": {field: list(shape) for field, shape in clip.items()},
            "analytic_flops_by_part": dict(parts),
            "analytic_flops_per_clip": flops,
            "analytic_flops_per_device": flops * rows // mesh.size,
            "seconds_at_peak": flops * rows / mesh.size / topology.chip.flops,
        }
    return {
        "label": LABEL,
        "versions": {"jax": jax.__version__, "libtpu": aot.compiler_version()},
        "topology": topology.name,
        "chip": topology.chip.product,
        "devices": mesh.size,
        "hbm_bytes_per_device": topology.chip.hbm_bytes,
        "mesh": dict(mesh.shape),
        **facts,
        "programs": programs,
    }


def _training_step(config: ConfigDict, topology: aot.Topology) -> Compilation:
    """The steps of a run's config."""
    run = parse_run(config)
    mesh = make_mesh(run.train.mesh, topology.devices)
    kinds = run.kinds()
    work: dict[str, Work] = {}
    for media, (stage, rows) in kinds.items():
        with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
            task = tasks.train_step_task(stage, run.train, mesh, rows)
        _, (state, fixed, frozen, batch) = task
        clip = {name: x.shape[1:] for name, x in batch.items() if x.ndim > 1}
        work[media if len(kinds) > 1 else "train step"] = Work(task, rows, clip, stage.flops())
    facts = {
        "model": {"architecture": f"{config.stage.kind} stage", "config": config.stage.to_dict()},
        **_sizes((state.params, fixed)),
        "frozen_parameters": sum(x.size for x in jax.tree.leaves(frozen)),
        "kept_whole": unsplit(run.stage, mesh, DEFAULT_RULES),
        "micro_batches": run.train.accumulation,
        "kept_tokens": None,
    }
    return mesh, work, facts


def _model(config: ConfigDict, topology: aot.Topology) -> Compilation:
    """Forward pass and gradients of a model's config."""
    missing = [f for f in ("model", "mesh", "batch_per_device", "gradient") if f not in config]
    if missing:
        raise ValueError(
            f"expected a config with a field {missing[0]!r}, found {', '.join(config)};"
            " start from configs/encoder.py or configs/stage1"
        )
    module = tasks.make_module(config.model)
    mesh = make_mesh(from_dict(MeshConfig, config.mesh, "config.mesh"), topology.devices)
    if config.batch_per_device < 1:
        raise ValueError(
            f"config.batch_per_device: expected at least 1, found {config.batch_per_device}"
        )
    batch_size = config.batch_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
    inputs = module.example_inputs(batch_size)
    num_kept = inputs[1].shape[1] if len(inputs) > 1 else None
    parts = module.flops()
    clip = {"video": inputs[0].shape[1:]}
    task = tasks.forward_task(module, mesh, batch_size)
    work = {"forward": Work(task, batch_size, clip, parts)}
    if config.gradient:
        task = tasks.gradient_task(module, mesh, batch_size)
        gradients = {name: gradient_flops(flops) for name, flops in parts.items()}
        work["gradient"] = Work(task, batch_size, clip, gradients)
    boxed = models.abstract_variables(module, boxed=True)
    facts = {
        "model": config.model.to_dict(),
        **_sizes(nn.unbox(boxed)["params"]),
        "frozen_parameters": 0,
        "kept_whole": unsplit_dimensions(boxed, mesh, DEFAULT_RULES),
        "micro_batches": 1,
        "kept_tokens": num_kept,
    }
    return mesh, work, facts


def _sizes(params: Any) -> dict[str, int]:
    leaves = jax.tree.leaves(params)
    return {
        "parameters": sum(p.size for p in leaves),
        "parameter_bytes": sum(p.size * p.dtype.itemsize for p in leaves),
    }


def _program_report(program: aot.Program, chip: aot.Chip) -> dict[str, Any]:
    memory, collectives, estimate = program.memory, program.collectives, program.estimate
    return {
        "fits": program.overflow is None,
        "overflow": program.overflow,
        "required_bytes": program.required_bytes,
        "lower_seconds": program.lower_seconds,
        "compile_seconds": program.compile_seconds,
        "memory": memory and dataclasses.asdict(memory) | {"total": memory.total},
        "collectives": None
        if collectives is None
        else [dataclasses.asdict(total) for total in hlo.totals(collectives)],
        "estimate": None if estimate is None else _estimate_report(estimate, chip),
        "seconds_on_the_wire": None
        if collectives is None
        else sum(c.wire_bytes * c.trips for c in collectives) / chip.wire_bytes,
        "note": program.note,
    }


def _estimate_report(program: step_time.Loop, chip: aot.Chip) -> dict[str, Any]:
    """Seconds of a program and of its loops, the dearest of each depth first."""

    def seconds(cycles: int) -> float:
        return cycles / chip.clock_hz

    return {
        "label": LABEL,
        "seconds": seconds(program.cycles),
        "kernel_seconds": seconds(program.kernel_cycles),
        "clock_hz": chip.clock_hz,
        "kernel_runs": program.kernel_runs,
        "loops": [
            {
                "depth": depth,
                "name": loop.name,
                "source": loop.source,
                "trips": loop.trips,
                "trips_known": loop.trips_known,
                "seconds": seconds(loop.cycles),
                "seconds_per_trip": seconds(loop.own_cycles),
                "kernels": loop.kernels,
                "dearest": [
                    dataclasses.asdict(operation) | {"seconds": seconds(operation.cycles)}
                    for operation in loop.operations[:_DEAREST]
                ],
            }
            for depth, loop in program.walk()
        ],
    }
