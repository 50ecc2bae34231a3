"""`internvideo-jax compile_report`: compiles a model for a TPU slice on a machine without one."""

import argparse
import contextlib
import dataclasses
import functools
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
    from ml_collections import ConfigDict

SUMMARY = "compile a model for a TPU slice without one: memory, collectives, FLOPs"

LABEL = "static estimate from the compiler, nothing has run"
EXIT_DOES_NOT_FIT = 3


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
    from internvideo_jax.launch.compilation import tasks
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
    module = tasks.make_module(config.model)
    topology = aot.topology(topology_name)
    axes = dict(config.mesh)
    if axes.get("fsdp") is None:
        others = axes.get("tensor", 1) * axes.get("context", 1)
        axes["fsdp"] = default_fsdp(max(len(topology.devices) // max(others, 1), 1))
    mesh = make_mesh(from_dict(MeshConfig, axes, "config.mesh"), topology.devices)
    if config.batch_per_device < 1:
        raise ValueError(
            f"config.batch_per_device: expected at least 1, found {config.batch_per_device}"
        )
    batch_size = config.batch_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
    inputs = module.example_inputs(batch_size)
    num_kept = inputs[1].shape[1] if len(inputs) > 1 else None
    parts = forward_flops(module.config, num_kept)
    forward = sum(parts.values())

    work = {"forward": (tasks.forward_task(module, mesh, batch_size), forward)}
    if config.gradient:
        task = tasks.gradient_task(module, mesh, batch_size)
        work["gradient"] = (task, gradient_flops(forward))
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
    parameters = jax.tree.leaves(models.abstract_variables(module)["params"])
    return {
        "label": LABEL,
        "versions": {"jax": jax.__version__, "libtpu": aot.compiler_version()},
        "topology": topology.name,
        "chip": topology.chip.product,
        "devices": mesh.size,
        "hbm_bytes_per_device": topology.chip.hbm_bytes,
        "mesh": dict(mesh.shape),
        "model": config.model.to_dict(),
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
        row(f"memory per device: {part}", functools.partial(_memory, part))
    row("of the device's memory", lambda p: _share(p, limit))

    lines += ["", "collectives per device and step"]
    header = (
        f"  {'program':10}{'kind':20}{'group':>7}{'ops':>6}{'runs':>7}{'MiB':>12}{'MiB sent':>12}"
    )
    rows = [
        _collective_row(name, c) for name, p in programs.items() for c in p["collectives"] or ()
    ]
    lines += [header, *rows] if rows else ["  none"]
    for name, program in programs.items():
        if program["note"]:
            lines.append(f"  {name}: {program['note']}")
        if not program["fits"]:
            lines += ["", f"{name}: DOES NOT FIT. {program['overflow']}"]
    return "\n".join(lines)


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


def _memory(part: str, program: dict[str, Any]) -> str:
    return _gib(program["memory"][part]) if program["memory"] else "-"


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
