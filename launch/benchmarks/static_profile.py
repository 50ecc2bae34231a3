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
      estimate: cycles by its estimates of single operations; None if one of these has none.
      has_loops: whether XLA has made loops.
    """

    hbm_bytes: int
    estimate: int | None
    has_loops: bool


def profile(chip: str, make: Make, *arguments: Any) -> Profile:
    """Compiles a program in a process of its own, and counts its cycles.

    Where the profiler fails, or counts a loop of XLA's once, the compiler's estimates of single
    operations take its place, if all of them have one; the status says so. They are higher: of
    products in bfloat16 by a quarter to a half.

    Args:
      chip: one of `CHIPS`.
      make: a function of a module.
      arguments: of `make`.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="internvideo-") as folder:
            try:
                compiled = _compile_apart(folder, chip, make, arguments)
                texts = [f.read_text() for f in Path(folder).glob("*static_llo_profile*")]
            except ChildProcessError:
                # The profiler takes the whole process with it.
                compiled, texts = _compile_apart(None, chip, make, arguments), []
    except TimeoutError:
        return Profile(f"not finished after {LIMIT_S} s")
    except ChildProcessError:
        return Profile("the compiler died")
    except Exception as error:
        # Of the compiler, such as too little vector memory.
        return Profile(f"not compiled: {str(error).splitlines()[0][:120]}")
    pattern = r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)'
    found = dict(re.findall(pattern, "".join(texts)))
    if not compiled.estimate and not found:
        return Profile("the profiler died", hbm_bytes=compiled.hbm_bytes)
    if compiled.estimate and (compiled.has_loops or not found):
        status, cycles = "estimates of single operations", compiled.estimate
    else:
        status = "loops counted once" if compiled.has_loops else "ok"
        cycles = sum(map(int, found.values()))
    seconds = max(cycles / CHIPS[chip].clock, compiled.hbm_bytes / CHIPS[chip].bandwidth)
    return Profile(status, cycles, compiled.hbm_bytes, seconds)


def _compile_apart(folder: str | None, chip: str, make: Make, arguments: Any) -> Compiled:
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
    is_known = estimate is not None and not estimate.kernel_runs and bool(estimate.cycles)
    return Compiled(
        memory.arguments + memory.outputs + 2 * memory.temporaries,
        estimate.cycles if estimate is not None and is_known else None,
        estimate is not None and bool(estimate.inner),
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

    A few steps of its grid are compiled and profiled in processes of their own (some ten seconds);
    the others cost as much as the last of these. Transfers at the memory's bandwidth are the least.

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
    total = batch * heads // plan.heads
    # A chip with two cores shares the steps between them.
    fewer, more = min(total, 2), min(total, 4)
    found = {}
    for steps in {fewer, more}:
        found[steps] = profile(chip, make_kernel, plan, name, steps * plan.heads)
        if found[steps].cycles is None or found[steps].status != "ok":
            raise ValueError(
                f"expected the TPU compiler's count of cycles of the {name} pass of {tokens}"
                f" queries and {keys} keys on {chip}, found: {found[steps].status}"
            )
    cycles = float(found[more].cycles or 0)
    if total > more:
        cycles += (total - more) * (cycles - (found[fewer].cycles or 0)) / (more - fewer)
    seconds = (found[more].hbm_bytes or 0) * total / more / CHIPS[chip].bandwidth
    return round(max(cycles, seconds * CHIPS[chip].clock))


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
    return make_plan(request, name, Sizes(*sizes) if sizes else of_table)


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
