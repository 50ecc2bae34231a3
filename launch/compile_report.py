"""`internvideo-jax compile_report`: compiles a model for a TPU slice on a machine without one."""

import argparse
import contextlib
import dataclasses
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from internvideo_jax.launch import arguments
from internvideo_jax.parallel import aot, hlo

if TYPE_CHECKING:
    import jax
    from flax import linen as nn
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

SUMMARY = "compile a model for a TPU slice without one: memory, collectives, FLOPs"

LABEL = "static estimate from the compiler, nothing has run"
EXIT_DOES_NOT_FIT = 3


@dataclasses.dataclass(frozen=True)
class Task:
    """A function to compile: its abstract arguments and the shardings of its results."""

    fn: Callable[..., Any]
    arguments: tuple[Any, ...]
    out_shardings: Any


@arguments.command
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; returns 0, or 3 if a program does not fit into the chips' memory."""
    parser = argparse.ArgumentParser(
        prog="internvideo-jax compile_report",
        description="Compiles the forward pass of a model, and its loss with gradients, for a TPU"
        " slice. Needs no TPU, only its compiler (libtpu, on Linux). Prints memory per device,"
        " collectives and analytic FLOPs; says nothing about speed. Exit code 3: it does not fit.",
        epilog="examples:\n"
        "  internvideo-jax compile_report --config=configs/encoder.py:1b --topology=v5e:4x4\n"
        "  internvideo-jax compile_report --config=configs/encoder.py:6b,student"
        " --topology=v5e:16x16 \\\n"
        "      --config.mesh.fsdp=16 --config.batch_per_device=4 --json=6b.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_config_argument(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:AxB[xC]",
        help="chips along each axis of the slice, as the compiler names it: "
        + ", ".join(aot.EXAMPLE_TOPOLOGIES),
    )
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")
    given = list(sys.argv[1:] if argv is None else argv)
    args, leftover = parser.parse_known_args(given)
    if aot.compiler_version() is None:
        raise arguments.UsageError(
            "expected the TPU compiler, found no package libtpu; install it with"
            " `pip install libtpu` (Linux on x86-64; the extras `dev` and `tpu` contain it)"
        )
    if "jax" in sys.modules:
        # JAX reads the environment when it is imported.
        command = [sys.executable, "-m", "internvideo_jax.launch.compile_report", *given]
        return subprocess.run(command, env=os.environ | aot.ENVIRONMENT).returncode
    os.environ.update(aot.ENVIRONMENT)

    report = compile_report(arguments.parse_config(args, leftover), args.topology)
    print(render(report))
    if args.json:
        arguments.write_json(args.json, report)
    return 0 if all(p["fits"] for p in report["programs"].values()) else EXIT_DOES_NOT_FIT


def compile_report(config: "ConfigDict", topology_name: str) -> dict[str, Any]:
    """Compiles a config's programs for a topology; returns the report, ready for JSON.

    Args:
      config: `model` (`architecture` and its `config`), `mesh` (fields of `MeshConfig`; an `fsdp`
        of None is chosen), `batch_per_device`, `gradient`.
      topology_name: e.g. "v5e:16x16".

    Raises:
      ValueError: a field is missing or wrong, or there is no such topology.
    """
    import jax

    from internvideo_jax import models
    from internvideo_jax.config import from_dict
    from internvideo_jax.models.flops import forward_flops, gradient_flops
    from internvideo_jax.parallel.mesh import MeshConfig, default_fsdp, make_mesh
    from internvideo_jax.parallel.rules import DEFAULT_RULES
    from internvideo_jax.parallel.sharding import unsplit_dimensions

    missing = [f for f in ("model", "mesh", "batch_per_device", "gradient") if f not in config]
    if missing:
        raise ValueError(
            f"expected a config with a field {missing[0]!r}, found {', '.join(config)};"
            " start from configs/encoder.py"
        )
    architecture, model_config = _model_config(config.model)
    module = models.ARCHITECTURES[architecture].module_cls(model_config)
    topology = aot.topology(topology_name)
    axes = dict(config.mesh)
    if axes.get("fsdp") is None:
        axes["fsdp"] = default_fsdp(len(topology.devices))
    mesh = make_mesh(from_dict(MeshConfig, axes, "config.mesh"), topology.devices)
    if config.batch_per_device < 1:
        raise ValueError(
            f"config.batch_per_device: expected at least 1, found {config.batch_per_device}"
        )
    batch_size = config.batch_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
    inputs = module.example_inputs(batch_size)
    num_kept = inputs[1].shape[1] if len(inputs) > 1 else None
    parts = forward_flops(model_config, num_kept)
    forward = sum(parts.values())

    tasks = {"forward": (forward_task(module, mesh, batch_size), forward)}
    if config.gradient:
        task = gradient_task(module, mesh, batch_size)
        tasks["gradient"] = (task, gradient_flops(forward))
    programs = {}
    for name, (task, flops) in tasks.items():
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
    parameters = jax.tree.leaves(models.abstract_variables(module)["params"])
    return {
        "label": LABEL,
        "versions": {"jax": jax.__version__, "libtpu": aot.compiler_version()},
        "topology": topology.name,
        "chip": topology.chip.product,
        "devices": mesh.size,
        "hbm_bytes_per_device": topology.chip.hbm_bytes,
        "mesh": dict(mesh.shape),
        "model": {"architecture": architecture, "config": config.model.config.to_dict()},
        "parameters": sum(math.prod(p.shape) for p in parameters),
        "parameter_bytes": sum(math.prod(p.shape) * p.dtype.itemsize for p in parameters),
        "kept_whole": unsplit_dimensions(
            models.abstract_variables(module, boxed=True), mesh, DEFAULT_RULES
        ),
        "batch_size": batch_size,
        "clip_shape": list(inputs[0].shape[1:]),
        "kept_tokens": num_kept,
        "analytic_forward_flops_by_part": parts,
        "programs": programs,
    }


def forward_task(module: "nn.Module", mesh: "Mesh", batch_size: int) -> Task:
    """The forward pass, its outputs split over the batch like its inputs."""
    variables, _ = _abstract_variables(module, mesh)
    inputs = _abstract_inputs(module, mesh, batch_size)
    outputs = _abstract_outputs(module, mesh, batch_size)
    import jax

    return Task(module.apply, (variables, *inputs), jax.tree.map(lambda x: x.sharding, outputs))


def gradient_task(module: "nn.Module", mesh: "Mesh", batch_size: int) -> Task:
    """A loss and its gradients, which have the shardings of the parameters.

    Students get the alignment loss with all terms, against targets in float32; other models the
    mean square of all outputs, which needs everything that they compute.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from internvideo_jax.models.stage1 import StudentOutput
    from internvideo_jax.objectives.distillation import distillation_loss

    variables, shardings = _abstract_variables(module, mesh)
    params = variables.pop("params")
    outputs = _abstract_outputs(module, mesh, batch_size)
    targets = {}
    if isinstance(outputs, StudentOutput):
        terms = {"clip_middle": outputs.clip_middle, "clip_final": outputs.clip_final}
        if outputs.mae is not None:
            terms["mae"] = outputs.mae
        targets = {
            name: jax.ShapeDtypeStruct(term.shape, jnp.float32, sharding=term.sharding)
            for name, term in terms.items()
        }

    def loss(params: Any, rest: Any, targets: Any, *inputs: Any) -> "jax.Array":
        outputs = module.apply({"params": params, **rest}, *inputs)
        if targets:
            student = {name: getattr(outputs, name) for name in targets}
            return distillation_loss(student, targets, dict.fromkeys(targets, 1.0))[0]
        squares = (jnp.mean(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(outputs))
        return sum(squares, jnp.float32(0.0))

    return Task(
        jax.value_and_grad(loss),
        (params, variables, targets, *_abstract_inputs(module, mesh, batch_size)),
        (NamedSharding(mesh, PartitionSpec()), shardings["params"]),
    )


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    programs = report["programs"]
    limit = report["hbm_bytes_per_device"]
    kept = report["kept_tokens"]
    clip = "x".join(map(str, report["clip_shape"]))
    lines = [
        f"{report['label']} (libtpu {report['versions']['libtpu']},"
        f" jax {report['versions']['jax']})",
        "",
        f"model      {report['model']['architecture']}, {report['parameters'] / 1e6:,.1f} M"
        f" parameters, {_gib(report['parameter_bytes'])}",
        f"topology   {report['topology']} ({report['chip']}), {report['devices']} devices with"
        f" {_gib(limit)} each",
        "mesh       " + " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items()),
        f"batch      {report['batch_size']} clips of {clip}"
        + (f", {kept} tokens kept" if kept else ""),
        *(f"note       {note}" for note in report["kept_whole"]),
        "",
        f"{'':34}" + "".join(f"{name:>14}" for name in programs),
    ]

    def row(title: str, value: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"{title:34}" + "".join(f"{value(p):>14}" for p in programs.values()))

    row("lowered in", lambda p: f"{p['lower_seconds']:.1f} s")
    row("compiled in", lambda p: f"{p['compile_seconds']:.1f} s")
    row("analytic FLOPs per clip", lambda p: f"{p['analytic_flops_per_clip'] / 1e12:.3f} T")
    row("analytic FLOPs per device", lambda p: f"{p['analytic_flops_per_device'] / 1e12:.3f} T")
    for part in ("arguments", "outputs", "temporaries", "program", "total"):
        title = f"memory per device: {part}"
        row(title, lambda p, part=part: _gib(p["memory"][part]) if p["memory"] else "-")
    row("of the device's memory", lambda p: _share(p, limit))

    lines += ["", "collectives per device and step"]
    header = f"  {'program':10}{'kind':20}{'group':>7}{'ops':>6}{'runs':>7}{'MiB':>12}{'MiB sent':>12}"
    rows = [_collective_row(name, c) for name, p in programs.items() for c in p["collectives"] or ()]
    lines += [header, *rows] if rows else ["  none"]
    for name, program in programs.items():
        if program["note"]:
            lines.append(f"  {name}: {program['note']}")
        if not program["fits"]:
            lines += ["", f"{name}: DOES NOT FIT. {program['overflow']}"]
    return "\n".join(lines)


def _model_config(config: "ConfigDict") -> tuple[str, Any]:
    from internvideo_jax import models
    from internvideo_jax.config import from_dict, nearest_name

    name = config.get("architecture")
    if name not in models.ARCHITECTURES:
        raise ValueError(
            f"config.model.architecture: expected one of {', '.join(models.ARCHITECTURES)},"
            f" found {name!r}{nearest_name(str(name), models.ARCHITECTURES)}"
        )
    config_cls = models.ARCHITECTURES[name].config_cls
    return name, from_dict(config_cls, config.config, "config.model.config")


def _abstract_variables(module: "nn.Module", mesh: "Mesh") -> tuple[Any, Any]:
    import jax

    from internvideo_jax.parallel.rules import DEFAULT_RULES
    from internvideo_jax.parallel.sharding import abstract_params

    inputs = module.example_inputs()
    return abstract_params(module.init, mesh, DEFAULT_RULES, jax.random.key(0), *inputs)


def _abstract_inputs(module: "nn.Module", mesh: "Mesh", batch_size: int) -> tuple[Any, ...]:
    return tuple(_split_batch(x, 0, mesh) for x in module.example_inputs(batch_size))


def _abstract_outputs(module: "nn.Module", mesh: "Mesh", batch_size: int) -> Any:
    """Shapes of the outputs, split over the batch, the axis that grows with it."""
    import jax

    from internvideo_jax import models

    variables = models.abstract_variables(module)
    one, many = (
        jax.eval_shape(module.apply, variables, *module.example_inputs(n)) for n in (1, batch_size)
    )

    def split(x: "jax.ShapeDtypeStruct", y: "jax.ShapeDtypeStruct") -> "jax.ShapeDtypeStruct":
        batch_axis = next((i for i in range(x.ndim) if x.shape[i] != y.shape[i]), 0)
        return _split_batch(y, batch_axis, mesh)

    return jax.tree.map(split, one, many)


def _split_batch(x: "jax.ShapeDtypeStruct", axis: int, mesh: "Mesh") -> "jax.ShapeDtypeStruct":
    import jax
    from jax.sharding import NamedSharding

    from internvideo_jax.parallel.rules import DEFAULT_RULES
    from internvideo_jax.parallel.sharding import partition_spec

    axes = tuple("batch" if i == axis else None for i in range(x.ndim))
    sharding = NamedSharding(mesh, partition_spec(axes, DEFAULT_RULES))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


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


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _share(program: dict[str, Any], limit: int) -> str:
    used = program["memory"]["total"] if program["memory"] else program["required_bytes"]
    return "unknown" if used is None else f"{100 * used / limit:.0f} %"


def _collective_row(name: str, c: dict[str, Any]) -> str:
    runs = str(c["executions"]) + ("" if c["trips_known"] else "+")
    return (
        f"  {name:10}{c['kind']:20}{c['group']:>7}{c['operations']:>6}{runs:>7}"
        f"{c['bytes'] / 2**20:>12,.1f}{c['wire_bytes'] / 2**20:>12,.1f}"
    )


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


if __name__ == "__main__":
    raise SystemExit(main())
