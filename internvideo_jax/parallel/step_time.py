"""How long a compiled TPU program takes by the compiler's own estimates, read from its HLO text.

The TPU compiler writes the cycles that it expects beside most operations. Here they are summed as
if one operation followed the other, those of a loop times its trips. A static estimate: nothing
has run. It is too high for products in bfloat16, which reach more of the peak than it assumes, and
it leaves out what carries no estimate: collectives, and kernels of our own (Pallas), but for those
whose cycles the caller knows.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from internvideo_jax.parallel.hlo import (
    Array,
    Instruction,
    arrays,
    callees,
    operands,
    parse,
    trip_count,
)

_CYCLES = r'"estimated_cycles":"(\d+)"'
_KERNEL = 'custom_call_target="tpu_custom_call"'
# Scopes that JAX's transformations add to those of our modules.
_NOISE = re.compile(r"jit\(.*\)|while|body|cond|closed_call|checkpoint|rematted_computation|")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A call of a kernel of our own.

    Attributes:
      name: of its result in the compiled program, which begins with the kernel's.
      operands: element types and dimensions of what it takes.
    """

    name: str
    operands: tuple[Array, ...]


# The cycles that a call takes; None if they are not known.
KernelCycles = Callable[[Kernel], int | None]


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of the innermost loop around it.

    Attributes:
      name: of its result in the compiled program.
      source: the scopes and the operation of our program that it is made of; "" if unknown.
      cycles: that one execution takes.
      is_kernel: whether it is a kernel of our own, whose cycles are not the compiler's estimate.
    """

    name: str
    source: str
    cycles: int
    is_kernel: bool = False


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program, a branch that it may take, or the whole program.

    Attributes:
      name: of the computation that is its body.
      source: as of an operation.
      trips: executions of the body in a run of the program, those of the loops around it counted.
      trips_known: whether the lengths of all these loops could be read; those of unknown length
        count once.
      operations: whose cycles are known, the dearest first; those of inner loops left out.
      kernels: how many of our own kernels of unknown cycles an execution of the body runs.
      inner: the loops inside.
    """

    name: str
    source: str
    trips: int
    trips_known: bool
    operations: tuple[Operation, ...]
    kernels: int
    inner: tuple["Loop", ...]

    @property
    def own_cycles(self) -> int:
        """Of an execution of the body, inner loops left out."""
        return sum(operation.cycles for operation in self.operations)

    @property
    def cycles(self) -> int:
        """Of all executions in a run of the program, inner loops included."""
        return self.trips * self.own_cycles + sum(loop.cycles for loop in self.inner)

    @property
    def kernel_cycles(self) -> int:
        """Of them, those of our own kernels."""
        own = sum(operation.cycles for operation in self.operations if operation.is_kernel)
        return self.trips * own + sum(loop.kernel_cycles for loop in self.inner)

    @property
    def kernel_runs(self) -> int:
        """How often kernels of our own whose cycles are not known run in a run of the program."""
        return self.trips * self.kernels + sum(loop.kernel_runs for loop in self.inner)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, "Loop"]]:
        """This loop and all inside it with their depths, the dearest of each depth first."""
        yield depth, self
        for loop in sorted(self.inner, key=lambda loop: -loop.cycles):
            yield from loop.walk(depth + 1)


def estimate(hlo: str, kernel_cycles: KernelCycles = lambda kernel: None) -> Loop:
    """The loops and the dearest operations of a program.

    Of the branches of a condition the dearest counts.

    Args:
      hlo: optimised HLO text, as `jax.stages.Compiled.as_text()` gives.
      kernel_cycles: what is known of kernels of our own.

    Returns:
      The whole program as a loop of one trip.

    Raises:
      ValueError: the text has no entry computation.
    """
    entry, computations = parse(hlo)
    return _loop(entry, "", computations, kernel_cycles, 1, True)


def _loop(
    name: str,
    source: str,
    computations: Mapping[str, Sequence[Instruction]],
    kernel_cycles: KernelCycles,
    trips: int,
    known: bool,
) -> Loop:
    operations: list[Operation] = []
    inner: list[Loop] = []
    kernels = 0

    def loop_of(body: str, instruction: Instruction, trips: int, known: bool) -> Loop:
        return _loop(body, _source(instruction), computations, kernel_cycles, trips, known)

    def add_operation(instruction: Instruction, cycles: int, is_kernel: bool = False) -> None:
        operation = Operation(instruction.name, _source(instruction), cycles, is_kernel)
        operations.append(operation)

    def visit(computation: str) -> None:
        nonlocal kernels
        instructions = computations.get(computation, ())
        for instruction in instructions:
            if instruction.opcode == "while":
                length = trip_count(instruction, computations)
                body = instruction.attribute(r"body=%?([\w.\-]+)") or ""
                times, is_known = trips * (length or 1), known and length is not None
                inner.append(loop_of(body, instruction, times, is_known))
            elif instruction.opcode == "conditional":
                branches = [loop_of(b, instruction, trips, known) for b in callees(instruction)]
                inner.append(max(branches, key=lambda branch: branch.cycles))
            elif instruction.opcode == "call":
                for callee in callees(instruction):
                    visit(callee)
            elif stated := instruction.attribute(_CYCLES):
                add_operation(instruction, int(stated))
            elif _KERNEL in instruction.rest:
                cycles = kernel_cycles(_kernel(instruction, instructions))
                if cycles is None:
                    kernels += 1
                else:
                    add_operation(instruction, cycles, is_kernel=True)

    visit(name)
    operations.sort(key=lambda operation: -operation.cycles)
    return Loop(name, source, trips, known, tuple(operations), kernels, tuple(inner))


def _kernel(instruction: Instruction, instructions: Sequence[Instruction]) -> Kernel:
    """A call among the instructions of its computation."""
    types = {other.name: other.type for other in instructions}
    found = (arrays(types.get(name, "")) for name in operands(instruction))
    return Kernel(instruction.name, tuple(array for taken in found for array in taken))


def _source(instruction: Instruction) -> str:
    """The scopes of our program, without what JAX adds."""
    scopes = (instruction.attribute(r'op_name="([^"]*)"') or "").split("/")
    return "/".join(scope for scope in scopes if not _NOISE.fullmatch(scope))
