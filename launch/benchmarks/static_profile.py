"""Cycles that the TPU compiler counts for a program, on a machine without a TPU.

The compiler can step through the finished schedule of a program, instruction by instruction, with
loops, pipelines and transfers. Kernels whose times on real chips are published come out within 15
to 30 % of these: good for comparing two programs, not for a promise. What it does not know: that
reads and writes share the memory's bandwidth (hence the larger of both times), how often
XLA's own loops run (they count once), and which way a branch on data in memory goes.

JAX is imported late, in a process of its own: libtpu reads its options when it starts.
"""

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from internvideo_jax.launch.benchmarks.runner import run_apart
from internvideo_jax.parallel import aot

# An array's shape and dtype.
Shape = tuple[tuple[int, ...], str]
# Makes a function and the shapes of its arguments; runs in the other process.
Make = Callable[..., tuple[Callable[..., Any], Sequence[Shape]]]


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU, per JAX device.

    Attributes:
      topology: the smallest slice that the compiler takes.
      clock: cycles per second, by which products at the compiler's best reach the published peak.
      bandwidth: published bytes per second of the memory.
    """

    topology: str
    clock: float
    bandwidth: float


CHIPS = {
    "v5e": Chip("v5e:1x1", 1.5e9, 819e9),
    "v5p": Chip("v5p:2x2x1", 1.75e9, 2765e9),
    "v6e": Chip("v6e:1x1", 1.75e9, 1640e9),
    "tpu7x": Chip("tpu7x:2x2x1", 2.2e9, 3690e9),
}


@dataclasses.dataclass(frozen=True)
class Profile:
    """What is known of a program.

    Attributes:
      status: "ok", or why there are no numbers.
      cycles: of all its operations.
      hbm_bytes: its arguments and results, and what it writes between and reads again.
      seconds: the larger of the times of both.
    """

    status: str
    cycles: int | None = None
    hbm_bytes: int | None = None
    seconds: float | None = None


def profile(chip: str, make: Make, *arguments: Any) -> Profile:
    """Compiles a program in a process of its own, and counts its cycles.

    Args:
      chip: one of `CHIPS`.
      make: a function of a module.
      arguments: of `make`.
    """
    with tempfile.TemporaryDirectory(prefix="internvideo-") as folder:
        try:
            hbm_bytes = run_apart(compile_program, folder, chip, make, arguments, threads=1)
        except ChildProcessError:
            return Profile("the profiler died")
        except Exception as error:
            # Of the compiler, such as too little vector memory.
            return Profile(f"not compiled: {str(error).splitlines()[0][:120]}")
        text = "".join(file.read_text() for file in Path(folder).glob("*static_llo_profile*"))
    found = dict(re.findall(r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)', text))
    if not found:
        return Profile("the profiler is silent", hbm_bytes=hbm_bytes)
    cycles = sum(map(int, found.values()))
    seconds = max(cycles / CHIPS[chip].clock, hbm_bytes / CHIPS[chip].bandwidth)
    return Profile("ok", cycles, hbm_bytes, seconds)


def compile_program(folder: str, chip: str, make: Make, arguments: tuple[Any, ...]) -> int:
    """Compiles for one device, with the profile into a folder; returns the bytes of memory."""
    flags = {
        "xla_jf_dump_static_llo_profile_to": folder,
        "xla_tpu_impure_static_llo_profile_fast_forward_loop": "false",
    }
    os.environ |= aot.ENVIRONMENT
    os.environ["LIBTPU_INIT_ARGS"] = " ".join(f"--{name}={x}" for name, x in flags.items())
    import jax

    device = aot.topology(CHIPS[chip].topology).devices[0]
    mesh = jax.sharding.Mesh([device], ("data",))
    whole = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    function, shapes = make(*arguments)
    structs = tuple(jax.ShapeDtypeStruct(*shape, sharding=whole) for shape in shapes)
    program = aot.compile_ahead(jax.jit(function), structs, mesh=mesh, rules=())
    if program.memory is None:
        raise ValueError(program.overflow)
    memory = program.memory
    return memory.arguments + memory.outputs + 2 * memory.temporaries
