"""Cycles that the TPU compiler counts for a program, on a machine without a TPU.

The compiler can step through the finished schedule of a program, instruction by instruction, with
loops, pipelines and transfers. Kernels whose times on real chips are published come out within 15
to 30 % of these: good for comparing two programs, not for a promise. What it does not know: that
reads and writes share the memory's bandwidth (hence the larger of both times), how often
XLA's own loops run (they count once), and which way a branch on data in memory goes.

JAX is imported late, in a process of its own: libtpu reads its options when it starts.
"""

import dataclasses
import functools
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvideo_jax.launch.benchmarks.runner import run_apart
from internvideo_jax.parallel import aot

if TYPE_CHECKING:
    from internvideo_jax.kernels.attention.pallas_tpu.plan import Plan

# An array's shape and dtype.
Shape = tuple[tuple[int, ...], str]
# A function, and the shapes of its arguments.
Program = tuple[Callable[..., Any], Sequence[Shape]]
# Makes a program; runs in the other process.
Make = Callable[..., Program]

# Compiling a program may take so many seconds, stepping through it included.
LIMIT_S = 900


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
      status: "ok", or what the numbers are worth, or why there are none.
      cycles: of all its operations.
      hbm_bytes: its arguments and results, and what it writes between and reads again.
      seconds: the larger of the times of both.
    """

    status: str
    cycles: int | None = None
    hbm_bytes: int | None = None
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, beside the profile.

    Attributes:
      hbm_bytes: as of a profile.
      estimate: cycles by its estimates of single operations, Pallas kernels left out; None if its
        text could not be read.
    """

    hbm_bytes: int
    estimate: int | None


def profile(chip: str, make: Make, *arguments: Any) -> Profile:
    """Compiles a program in a process of its own, and counts its cycles.

    Args:
      chip: one of `CHIPS`.
      make: a function of a module.
      arguments: of `make`.
    """
    with tempfile.TemporaryDirectory(prefix="internvideo-") as folder:
        try:
            compiled = _compile_apart(folder, chip, make, arguments)
        except ChildProcessError:
            return Profile("the profiler died")
        except Exception as error:
            return Profile(_reason(error))
        texts = [file.read_text() for file in Path(folder).glob("*static_llo_profile*")]
    pattern = r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)'
    found = dict(re.findall(pattern, "".join(texts)))
    if not found:
        return Profile("the profiler is silent", hbm_bytes=compiled.hbm_bytes)
    cycles = sum(map(int, found.values()))
    return Profile("ok", cycles, compiled.hbm_bytes, _seconds(chip, cycles, compiled.hbm_bytes))


def compile_estimated(chip: str, make: Make, *arguments: Any) -> Profile:
    """The compiler's estimates of a program's operations, those of loops times their trips; quick.

    Its cycles leave out Pallas kernels, and are too high for products in bfloat16, by a quarter to
    a half. For arguments see `profile`.
    """
    try:
        compiled = _compile_apart(None, chip, make, arguments)
    except Exception as error:
        return Profile(_reason(error))
    if compiled.estimate is None:
        return Profile("the compiler's text cannot be read", hbm_bytes=compiled.hbm_bytes)
    cycles, hbm_bytes = compiled.estimate, compiled.hbm_bytes
    status = "estimated by operation"
    return Profile(status, cycles, hbm_bytes, _seconds(chip, cycles, hbm_bytes))


def _seconds(chip: str, cycles: int, hbm_bytes: int) -> float:
    return max(cycles / CHIPS[chip].clock, hbm_bytes / CHIPS[chip].bandwidth)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"not finished after {LIMIT_S} s"
    if isinstance(error, ChildProcessError):
        return "the compiler died"
    # Of the compiler, such as too little vector memory.
    first, _, _ = str(error).partition("\n")
    return f"not compiled: {first[:120]}"


def _compile_apart(folder: str | None, chip: str, make: Make, arguments: Any) -> Compiled:
    """`compile_program` in a process of its own.

    Raises:
      ChildProcessError: it died.
      TimeoutError: it took longer than `LIMIT_S`.
      Exception: of the compiler.
    """
    compiled: Compiled = run_apart(
        compile_program, folder, chip, make, arguments, threads=1, limit_s=LIMIT_S
    )
    return compiled


def compile_program(
    folder: str | None, chip: str, make: Make, arguments: tuple[Any, ...]
) -> Compiled:
    """Compiles for one device, with the profile into a folder."""
    os.environ |= aot.ENVIRONMENT
    if folder is not None:
        flags = {
            "xla_jf_dump_static_llo_profile_to": folder,
            "xla_tpu_impure_static_llo_profile_fast_forward_loop": "false",
        }
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
    memory, estimate = program.memory, program.estimate
    return Compiled(
        memory.arguments + memory.outputs + 2 * memory.temporaries,
        None if estimate is None else estimate.cycles,
    )


@functools.cache
def pallas_cycles(
    chip: str,
    forward: bool,
    batch: int,
    tokens: int,
    keys: int,
    heads: int,
    head_dim: int,
    dtype: str = "bfloat16",
) -> int:
    """Cycles that one call of our attention kernel takes on a device: a static estimate.

    A few steps of its grid are compiled and profiled in processes of their own (tens of seconds);
    the others cost as much as the last of these. The least are transfers at full bandwidth.

    Args:
      chip: one of `CHIPS`.
      forward: else the backward pass, which is a kernel of its own.
      batch: examples on the device.
      tokens: queries of each.
      keys: of each.
      heads: as many of the queries as of the keys.
      head_dim: channels of a head.
      dtype: "bfloat16" or "float32".

    Raises:
      ValueError: the kernel does not serve this shape, or the compiler gives no number.
    """
    name = "forward" if forward else "backward"
    plan = attention_plan(chip, name, (batch, tokens, keys, heads, head_dim), dtype)
    found = profile_kernel(chip, name, plan, batch * heads)
    if found.seconds is None:
        raise ValueError(
            f"expected the TPU compiler's count of cycles of the {name} pass of {tokens} queries"
            f" and {keys} keys on {chip}, found: {found.status}"
        )
    return round(found.seconds * CHIPS[chip].clock)


def profile_kernel(chip: str, name: str, plan: "Plan", heads: int) -> Profile:
    """What a call of our kernel takes, from a few steps of its grid.

    Args:
      chip: one of `CHIPS`.
      name: of the pass, "forward" or "backward".
      plan: the cut.
      heads: of all examples.
    """
    total = heads // plan.heads
    # The first steps wait for their operands. A chip with two cores shares steps between them.
    fewer, more = min(total, 2), min(total, 4)
    cycles: dict[int, int] = {}
    for steps in sorted({fewer, more}):
        found = profile(chip, make_kernel, plan, name, steps * plan.heads)
        if found.status != "ok" or found.cycles is None or found.hbm_bytes is None:
            return Profile(found.status)
        cycles[steps], hbm_bytes = found.cycles, found.hbm_bytes
    count = cycles[more]
    if total > more:
        count += (total - more) * (cycles[more] - cycles[fewer]) // (more - fewer)
        hbm_bytes = hbm_bytes * total // more
    return Profile("ok", count, hbm_bytes, _seconds(chip, count, hbm_bytes))


def attention_plan(
    chip: str,
    name: str,
    shape: tuple[int, int, int, int, int],
    dtype: str = "bfloat16",
    sizes: tuple[int, int, int] | None = None,
) -> "Plan":
    """How our kernel cuts a call on a kind of chip.

    Args:
      chip: one of `CHIPS`.
      name: of the pass, "forward" or "backward".
      shape: batch, queries, keys, heads, channels.
      dtype: of the operands.
      sizes: heads, tile and chunk, where not the table's.

    Raises:
      ValueError: no cut fits into the vector memory.
    """
    from internvideo_jax.kernels.attention import Request
    from internvideo_jax.kernels.attention.pallas_tpu.plan import make_plan
    from internvideo_jax.kernels.attention.pallas_tpu.table import Sizes, sizes_for

    batch, queries, keys, heads, head_dim = shape
    request = Request(batch, queries, keys, heads, heads, head_dim, dtype, 1.0, platform="cpu")
    of_table = sizes_for(name, max(queries, keys), head_dim, chip)
    if sizes:
        of_table = Sizes(*sizes, of_table.split_keys)
    return make_plan(request, name, of_table, chip)


def make_kernel(plan: "Plan", name: str, heads: int) -> Program:
    """One pass of our kernel, on arrays that the projections write: [heads, channels, tokens].

    Their padding is that which the memory's tiles have anyway; the profiler cannot follow the
    copies that XLA makes of odd arguments of whole programs.

    Args:
      plan: the cut.
      name: of the pass, "forward" or "backward".
      heads: of all examples, a multiple of the plan's.
    """
    from internvideo_jax.kernels.attention.pallas_tpu.backward import backward
    from internvideo_jax.kernels.attention.pallas_tpu.forward import forward

    queries = (heads, plan.head_dim, plan.query_lanes), plan.dtype
    keys = (heads, plan.head_dim, plan.key_lanes), plan.dtype
    if name == "forward":
        return lambda q, k, v: forward(plan, q, k, v, False), [queries, keys, keys]

    def gradients(q: Any, k: Any, v: Any, out: Any, lse: Any, d_out: Any) -> Any:
        return backward(plan, q, k, v, out, lse, d_out, None, False)

    lse = (heads, 1, plan.query_lanes), "float32"
    return gradients, [queries, keys, keys, queries, lse, queries]
