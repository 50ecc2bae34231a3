"""What compiling a config for a topology gives, ready for JSON."""

import contextlib
import dataclasses
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from internvideo_jax import models
from internvideo_jax.config import from_dict
from internvideo_jax.launch.compilation import tasks
from internvideo_jax.launch.compilation.text import LABEL
from internvideo_jax.launch.train import parse_run
from internvideo_jax.models import gradient_flops
from internvideo_jax.parallel import aot, hlo
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import unsplit_dimensions
from internvideo_jax.training.state import unsplit


def compile_report(config: ConfigDict, topology_name: str) -> dict[str, Any]:
    """Compiles a config's programs for a topology.

    Args:
      config: of a run (`stage`, `train`, `data`, as in configs/stage1), of which the training step
        is compiled; or of a model (`model`, `mesh`, `batch_per_device`, `gradient`, as in
        configs/encoder.py), of which forward pass and gradients are.
      topology_name: e.g. "v5e:16x16".

    Raises:
      ValueError: a field is missing or wrong, or there is no such topology.
    """
    return (_training_report if "stage" in config else _model_report)(config, topology_name)


def _training_report(config: ConfigDict, topology_name: str) -> dict[str, Any]:
    run = parse_run(config)
    topology = aot.topology(topology_name)
    mesh = make_mesh(run.train.mesh, topology.devices)
    with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
        task = tasks.train_step_task(run.stage, run.train, mesh)
    state, fixed, frozen, batch = task.arguments
    parts = run.stage.flops()
    work = {"train step": (task, sum(parts.values()))}
    accumulation = run.train.accumulation
    return {
        **_header(topology, mesh),
        "model": {"architecture": f"{config.stage.kind} stage", "config": config.stage.to_dict()},
        **_sizes((state.params, fixed)),
        "frozen_parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(frozen)),
        "kept_whole": unsplit(run.stage, mesh, DEFAULT_RULES),
        "batch_size": run.train.rows,
        "micro_batches": accumulation,
        "clip_shape": list(batch["video"].shape[1:]),
        "kept_tokens": None,
        "analytic_flops_by_part": parts,
        "programs": _compile(work, mesh, topology_name, run.train.rows),
    }


def _model_report(config: ConfigDict, topology_name: str) -> dict[str, Any]:
    missing = [f for f in ("model", "mesh", "batch_per_device", "gradient") if f not in config]
    if missing:
        raise ValueError(
            f"expected a config with a field {missing[0]!r}, found {', '.join(config)};"
            " start from configs/encoder.py or configs/stage1"
        )
    module = tasks.make_module(config.model)
    topology = aot.topology(topology_name)
    mesh = make_mesh(from_dict(MeshConfig, config.mesh, "config.mesh"), topology.devices)
    if config.batch_per_device < 1:
        raise ValueError(
            f"config.batch_per_device: expected at least 1, found {config.batch_per_device}"
        )
    batch_size = config.batch_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
    inputs = module.example_inputs(batch_size)
    num_kept = inputs[1].shape[1] if len(inputs) > 1 else None
    parts = module.flops()
    forward = sum(parts.values())
    work = {"forward": (tasks.forward_task(module, mesh, batch_size), forward)}
    if config.gradient:
        task = tasks.gradient_task(module, mesh, batch_size)
        work["gradient"] = (task, gradient_flops(forward))
    boxed = models.abstract_variables(module, boxed=True)
    return {
        **_header(topology, mesh),
        "model": config.model.to_dict(),
        **_sizes(nn.unbox(boxed)["params"]),
        "frozen_parameters": 0,
        "kept_whole": unsplit_dimensions(boxed, mesh, DEFAULT_RULES),
        "batch_size": batch_size,
        "micro_batches": 1,
        "clip_shape": list(inputs[0].shape[1:]),
        "kept_tokens": num_kept,
        "analytic_flops_by_part": parts,
        "programs": _compile(work, mesh, topology_name, batch_size),
    }


def _compile(
    work: Mapping[str, tuple[tasks.Task, int]], mesh: Mesh, topology_name: str, batch_size: int
) -> dict[str, Any]:
    """Reports of programs, given as a task and its FLOPs per clip, by name."""
    programs = {}
    for name, (task, flops) in work.items():
        with _progress(f"compiling the {name} program of {topology_name}"):
            program = aot.compile_ahead(
                task.fn,
                task.arguments,
                mesh=mesh,
                rules=DEFAULT_RULES,
                out_shardings=task.out_shardings,
            )
        programs[name] = _program_report(program) | {
            "analytic_flops_per_clip": flops,
            "analytic_flops_per_device": flops * batch_size // mesh.size,
        }
    return programs


def _header(topology: aot.Topology, mesh: Mesh) -> dict[str, Any]:
    return {
        "label": LABEL,
        "versions": {"jax": jax.__version__, "libtpu": aot.compiler_version()},
        "topology": topology.name,
        "chip": topology.chip.product,
        "devices": mesh.size,
        "hbm_bytes_per_device": topology.chip.hbm_bytes,
        "mesh": dict(mesh.shape),
    }


def _sizes(params: Any) -> dict[str, int]:
    leaves = jax.tree.leaves(params)
    return {
        "parameters": sum(math.prod(p.shape) for p in leaves),
        "parameter_bytes": sum(math.prod(p.shape) * p.dtype.itemsize for p in leaves),
    }


def _program_report(program: aot.Program) -> dict[str, Any]:
    memory = program.memory
    collectives = program.collectives
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
        "note": program.note,
    }


@contextlib.contextmanager
def _progress(text: str) -> Iterator[None]:
    """Says on stderr what is going on, on a terminal with the seconds that it has taken."""
    done = threading.Event()
    start = time.perf_counter()

    def tick() -> None:
        while not done.wait(1):
            print(f"\r{text}: {time.perf_counter() - start:.0f} s", end="", file=sys.stderr)

    if not sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr)
        yield
        return
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\033[K", end="", file=sys.stderr)
