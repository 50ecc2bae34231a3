"""Compiles programs for TPU slices that are not attached, and says what they need.

The TPU compiler (package `libtpu`) runs on any Linux host against a mere description of a slice:
shardings, memory limits, kernels and collectives are the real ones, only execution is missing.
JAX must be imported with the variables of `ENVIRONMENT` set, so this module imports it late.
"""

import dataclasses
import importlib.metadata
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvideo_jax.parallel import hlo, step_time

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from internvideo_jax.parallel.rules import Rules

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Or else libtpu waits for the cloud's metadata server.
    "TPU_SKIP_MDS_QUERY": "1",
    # Or else a second process with libtpu dies on a lock file.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # These silence warnings that no slice is attached.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}

EXAMPLE_TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v5p:2x2x2", "v5p:8x8x8", "v6e:16x16", "tpu7x:4x4x4")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU generation, its figures per JAX device.

    Attributes:
      product: its name.
      hbm_bytes: memory that the compiler accepts.
      clock_hz: of the cores.
      flops: products of bfloat16 numbers per second, at best.
      wire_bytes: what it can send to its neighbours per second.
    """

    product: str
    hbm_bytes: int
    clock_hz: float
    flops: float
    wire_bytes: float


# Memory as the compiler (libtpu 0.0.51) states it when it is exceeded. The clocks are those by
# which its cycles of a large product give the published peaks; links count in one direction, half
# of what Cloud TPU's pages say. A device is a chip, but half a chip on tpu7x.
CHIPS = {
    "v4": Chip("TPU v4", int(30.75 * 2**30), 1.05e9, 275e12, 300e9),
    "v5e": Chip("TPU v5e", int(15.75 * 2**30), 1.5e9, 197e12, 200e9),
    "v5p": Chip("TPU v5p", int(95.73 * 2**30), 1.75e9, 459e12, 600e9),
    "v6e": Chip("TPU v6e, Trillium", int(31.24 * 2**30), 1.75e9, 918e12, 400e9),
    "tpu7x": Chip("TPU7x, Ironwood", int(94.74 * 2**30), 2.2e9, 1153.5e12, 300e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice by the compiler's name for it, its kind of chip, and its devices."""

    name: str
    chip: Chip
    devices: "tuple[jax.Device, ...]"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of device memory that one device needs to run a program.

    Attributes:
      arguments: its shards of all inputs, parameters included.
      outputs: its shards of all results.
      temporaries: intermediate values at their peak.
      program: the machine code.
    """

    arguments: int
    outputs: int
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.arguments + self.outputs + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, or the reason why the compiler refused it.

    Attributes:
      lower_seconds: time to trace and lower.
      compile_seconds: time to compile.
      memory: what it needs; None if it does not fit.
      collectives: None if it does not fit, or if its text cannot be read (see `note`).
      estimate: how long it takes; None likewise.
      overflow: the compiler's message if the program does not fit into memory.
      required_bytes: memory per device that the compiler found necessary if it does not fit.
      note: why something is missing.
    """

    lower_seconds: float
    compile_seconds: float
    memory: Memory | None = None
    collectives: list[hlo.Collective] | None = None
    estimate: step_time.Loop | None = None
    overflow: str | None = None
    required_bytes: int | None = None
    note: str | None = None


def compiler_version() -> str | None:
    """Version of the installed TPU compiler, None without one."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return None


def topology(name: str) -> Topology:
    """Describes a TPU slice, e.g. "v5e:16x16" (chips per torus axis).

    Raises:
      ValueError: there is no such kind of chip or slice.
    """
    import jax
    from jax.experimental import topologies

    generation, _, sizes = name.partition(":")
    expected = (
        f"expected a topology GENERATION:AxB[xC] with a generation of {', '.join(CHIPS)},"
        f" for example {', '.join(EXAMPLE_TOPOLOGIES)}; found {name!r}"
    )
    # The compiler itself dies of a zero.
    if generation not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sizes):
        raise ValueError(expected)
    # A v4 chip counts as one device only in this mode, which is how it is used.
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise ValueError(f"{expected} ({reason})") from None
    return Topology(name, CHIPS[generation], tuple(description.devices))


def compile_ahead(
    fn: Any,
    arguments: tuple[Any, ...],
    *,
    mesh: "Mesh",
    rules: "Rules",
    kernel_cycles: step_time.KernelCycles = lambda kernel: None,
) -> Program:
    """Lowers and compiles a function for the devices of a mesh without running it.

    Args:
      fn: jitted function of pytrees of arrays.
      arguments: pytrees of `jax.ShapeDtypeStruct` with shardings on `mesh`.
      mesh: mesh of described or attached devices.
      rules: logical axis rules for the models' constraints.
      kernel_cycles: what is known of kernels of our own, for the estimate.

    Returns:
      What the compiler says. A program that does not fit into device memory is such a result;
      all other compiler errors are raised.
    """
    import flax.linen as nn
    import jax

    with (
        jax.set_mesh(mesh),
        nn.logical_axis_rules(rules),
        tempfile.TemporaryDirectory() as folder,
    ):
        start = time.perf_counter()
        lowered = fn.lower(*arguments)
        lower_seconds = time.perf_counter() - start
        start = time.perf_counter()
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=dump)
        except jax.errors.JaxRuntimeError as error:
            message = str(error).splitlines()[0]
            if "CompileTimeHbmOom" not in message:
                raise
            return Program(
                lower_seconds,
                time.perf_counter() - start,
                overflow=message,
                required_bytes=required_bytes(message),
            )
        compile_seconds = time.perf_counter() - start
        text, note = _text(compiled, Path(folder))
    sizes: Any = compiled.memory_analysis()
    memory = Memory(
        arguments=sizes.argument_size_in_bytes,
        outputs=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        program=sizes.generated_code_size_in_bytes,
    )
    if text is None:
        return Program(lower_seconds, compile_seconds, memory, note=note)
    estimate = step_time.estimate(text, kernel_cycles)
    return Program(lower_seconds, compile_seconds, memory, hlo.collectives(text), estimate)


def _text(compiled: Any, folder: Path) -> tuple[str | None, str | None]:
    """A compiled program's text, or None and why there is none.

    Args:
      compiled: the program.
      folder: where the compiler itself has written it.
    """
    import jax

    try:
        return str(compiled.as_text()), None
    except jax.errors.JaxRuntimeError as error:
        # jaxlib 0.10.2 cannot always read what libtpu compiles for v5p and tpu7x.
        files = folder.glob("*.after_codegen.txt")
        text = max((file.read_text() for file in files), key=len, default=None)
        note = None if text else f"no collectives and no estimate: {str(error).splitlines()[0]}"
        return text, note


def required_bytes(message: str) -> int | None:
    """The memory that an out-of-memory message of the TPU compiler asks for, if it says so."""
    match = re.search(r"total memory required[^(]*\(([\d.]+)([KMGT])\)", message)
    if match is None:
        return None
    return int(float(match.group(1)) * 2 ** (10 * (1 + "KMGT".index(match.group(2)))))
