"""How long a compiled TPU program takes by the compiler's own estimates, read from its HLO text.

The TPU compiler writes the cycles that it expects beside most operations. Here they are summed as
if one operation followed the other, those of a loop times its trips. A static estimate: nothing
has run. It is too high for products in bfloat16, which reach more of the peak than it assumes, and
it leaves out what carries no estimate: collectives, and kernels of our own (Pallas).
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from internvideo_jax.parallel.hlo import Instruction, callees, parse, trip_count

_CYCLES = r'"estimated_cycles":"(\d+)"'
_KERNEL = 'custom_call_target="tpu_custom_call"'
# Scopes that JAX's transformations add to those of our modules.
_NOISE = re.compile(r"jit\(.*\)|while|body|cond|closed_call|checkpoint|rematted_computation|")


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of the innermost loop around it.

    Attributes:
      name: of its result in the compiled program.
      source: the scopes and the operation of our program that it is made of; "" if unknown.
      cycles: that one execution takes.
    """

    name: str
    source: str
    cycles: int


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program, a branch that it may take, or the whole program.

    Attributes:
      name: of the computation that is its body.
      source: as of an operation.
      trips: executions of the body in a run of the program, those of the loops around it counted.
      trips_known: whether the lengths of all these loops could be read; those of unknown length
        count once.
      operations: that carry an estimate, the dearest first; those of inner loops left out.
      kernels: how many of our own kernels an execution of the body runs; they carry none.
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
    def kernel_runs(self) -> int:
        """How often kernels of our own run in a run of the program."""
        return self.trips * self.kernels + sum(loop.kernel_runs for loop in self.inner)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, "Loop"]]:
        """This loop and all inside it with their depths, the dearest of each depth first."""
        yield depth, self
        for loop in sorted(self.inner, key=lambda loop: -loop.cycles):
            yield from loop.walk(depth + 1)


def estimate(hlo: str) -> Loop:
    """The loops and the dearest operations of a program.

    Of the branches of a condition the dearest counts.

    Args:
      hlo: optimised HLO text, as `jax.stages.Compiled.as_text()` gives.

    Returns:
      The whole program as a loop of one trip.

    Raises:
      ValueError: the text has no entry computation.
    """
    entry, computations = parse(hlo)
    return _loop(entry, "", computations, 1, True)


def _loop(
    name: str,
    source: str,
    computations: Mapping[str, Sequence[Instruction]],
    trips: int,
    known: bool,
) -> Loop:
    operations: list[Operation] = []
    inner: list[Loop] = []
    kernels = 0

    def visit(computation: str) -> None:
        nonlocal kernels
        for instruction in computations.get(computation, ()):
            if instruction.opcode == "while":
                length = trip_count(instruction, computations)
                body = instruction.attribute(r"body=%?([\w.\-]+)") or ""
                times, is_known = trips * (length or 1), known and length is not None
                inner.append(_loop(body, _source(instruction), computations, times, is_known))
            elif instruction.opcode == "conditional":
                branches = [
                    _loop(branch, _source(instruction), computations, trips, known)
                    for branch in callees(instruction)
                ]
                inner.append(max(branches, key=lambda branch: branch.cycles))
            elif instruction.opcode == "call":
                for callee in callees(instruction):
                    visit(callee)
            elif cycles := instruction.attribute(_CYCLES):
                operations.append(Operation(instruction.name, _source(instruction), int(cycles)))
            elif _KERNEL in instruction.rest:
                kernels += 1

    visit(name)
    operations.sort(key=lambda operation: -operation.cycles)
    return Loop(name, source, trips, known, tuple(operations), kernels, tuple(inner))


def _source(instruction: Instruction) -> str:
    """The scopes of our program, without what JAX adds."""
    scopes = (instruction.attribute(r'op_name="([^"]*)"') or "").split("/")
    return "/".join(scope for scope in scopes if not _NOISE.fullmatch(scope))
