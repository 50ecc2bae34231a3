"""Reads a compiled program from its optimised HLO text: computations, loops, collectives.

Written for what the TPU compiler prints, which differs from other backends: an asynchronous
collective is cloned into start, overlap and done fusions; a reduce-scatter is a fusion called
`%all-reduce-scatter...` around an all-reduce; loops carry no trip count, it is read off their
condition.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_COLLECTIVE = re.compile(rf"({'|'.join(_KINDS)})(-start)?")
# Bits, because there are types of half a byte.
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}

# Element type, e.g. "bf16", and dimensions.
Array = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program, as seen by one device.

    Attributes:
      kind: HLO opcode, e.g. "all-gather".
      group: number of devices that take part in one exchange.
      trips: executions per run of the program.
      trips_known: whether the trip counts of all loops around it could be read; if not, loops of
        unknown length count once.
      bytes: size of the whole array in one execution: result of a gather, operand of a scatter.
    """

    kind: str
    group: int
    trips: int
    trips_known: bool
    bytes: int

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends in one execution by a ring algorithm."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.bytes
        once = self.bytes * (self.group - 1) / self.group
        return 2 * once if self.kind == "all-reduce" else once


@dataclasses.dataclass(frozen=True)
class CollectiveTotal:
    """Collectives of one kind and group size: their number, executions and bytes per run."""

    kind: str
    group: int
    operations: int
    executions: int
    bytes: int
    wire_bytes: float
    trips_known: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: of its result.
      type: of its result, as HLO writes it.
      opcode: e.g. "fusion".
      rest: the line from the operands on.
    """

    name: str
    type: str
    opcode: str
    rest: str

    def attribute(self, pattern: str) -> str | None:
        """What the pattern's group matches behind the opcode, None without a match."""
        match = re.search(pattern, self.rest)
        return match.group(1) if match else None


def collectives(hlo: str) -> list[Collective]:
    """All collectives that a run of the program executes, clones of one operation counted once.

    Args:
      hlo: optimised HLO text, as `jax.stages.Compiled.as_text()` gives.

    Raises:
      ValueError: the text has no entry computation.
    """
    entry, computations = parse(hlo)
    num_devices = _num_devices(hlo)
    found: list[Collective] = []
    seen: set[tuple[str, ...]] = set()

    def visit(name: str, trips: int, known: bool) -> None:
        for instruction in computations.get(name, ()):
            match = _COLLECTIVE.fullmatch(instruction.opcode)
            if match:
                key = _identity(match.group(1), instruction)
                if key not in seen:
                    seen.add(key)
                    found.append(_collective(name, instruction, trips, known, num_devices))
            elif instruction.opcode == "while":
                length = trip_count(instruction, computations)
                body = instruction.attribute(r"body=%?([\w.\-]+)")
                times = 1 if length is None else length
                visit(body or "", trips * times, known and length is not None)
            else:
                for callee in callees(instruction):
                    visit(callee, trips, known)

    visit(entry, 1, True)
    return found


def totals(found: list[Collective]) -> list[CollectiveTotal]:
    """Sums per kind and group size, the most traffic first."""
    groups: dict[tuple[str, int], list[Collective]] = {}
    for collective in found:
        groups.setdefault((collective.kind, collective.group), []).append(collective)
    sums = [
        CollectiveTotal(
            kind=kind,
            group=group,
            operations=len(members),
            executions=sum(c.trips for c in members),
            bytes=sum(c.bytes * c.trips for c in members),
            wire_bytes=sum(c.wire_bytes * c.trips for c in members),
            trips_known=all(c.trips_known for c in members),
        )
        for (kind, group), members in groups.items()
    ]
    return sorted(sums, key=lambda total: -total.wire_bytes)


def parse(hlo: str) -> tuple[str, dict[str, list[Instruction]]]:
    """Name of the entry computation, and the instructions of all by their computations' names.

    Raises:
      ValueError: the text has no entry computation.
    """
    entry, current = None, None
    computations: dict[str, list[Instruction]] = {}
    for line in hlo.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-<>]+) \(.*\) -> .*\{\s*$", line)
        if header:
            current = header.group(2)
            computations[current] = []
            entry = current if header.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            computations[current].append(_parse_instruction(line))
    if entry is None:
        raise ValueError("expected HLO text with an ENTRY computation, found none")
    return entry, computations


def _parse_instruction(line: str) -> Instruction:
    name, _, text = line.partition(" = ")
    text = re.sub(r"/\*index=\d+\*/", "", text)
    end = _closing_parenthesis(text) + 1 if text.startswith("(") else text.find(" ")
    opcode, _, rest = text[end:].strip().partition("(")
    name = name.strip().removeprefix("ROOT ").removeprefix("%")
    return Instruction(name, text[:end], opcode, rest)


def _closing_parenthesis(text: str) -> int:
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i
    return len(text)


def _identity(kind: str, instruction: Instruction) -> tuple[str, ...]:
    """Equal for the clones of one collective, which differ in layouts and operand names only.

    A channel alone does not identify one: the compiler reuses channels of collective-permutes.
    """
    channel = instruction.attribute(r"channel_id=(\d+)") or instruction.rest
    source = instruction.attribute(r'op_name="([^"]*)"') or ""
    return kind, channel, source, *(f"{t}{dims}" for t, dims in arrays(instruction.type))


def _collective(
    computation: str, instruction: Instruction, trips: int, known: bool, num_devices: int
) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    group = _group_size(instruction, num_devices)
    sizes = [_array_bytes(*array) for array in arrays(instruction.type)]
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # The type lists operands, results and, for some kinds, semaphores.
        count = len(operands(instruction))
        sizes = sizes[count : 2 * count]
    size = sum(sizes)
    if kind == "reduce-scatter":
        size *= group
    elif kind == "all-reduce" and "all-reduce-scatter" in computation:
        kind = "reduce-scatter"
    return Collective(kind, group, trips, known, size)


def _array_bytes(dtype: str, dims: tuple[int, ...]) -> int:
    bits = _BITS.get(dtype)
    if bits is None:
        digits = re.match(r"[a-z]+(\d+)", dtype)
        bits = int(digits.group(1)) if digits else 0
    return math.ceil(math.prod(dims) * bits / 8)


def _num_devices(hlo: str) -> int:
    header = hlo.split("\n", 1)[0]
    count = 1
    for name in ("num_partitions", "replica_count"):
        match = re.search(rf"\b{name}=(\d+)", header)
        count *= int(match.group(1)) if match else 1
    return count


def _group_size(instruction: Instruction, num_devices: int) -> int:
    if instruction.opcode.startswith("collective-permute"):
        # Each device has one partner; what matters is how many devices exchange.
        return num_devices
    explicit = instruction.attribute(r"replica_groups=\{\{([0-9,]+)\}")
    if explicit:
        return explicit.count(",") + 1
    # E.g. mesh['x'=4,'y'=4] {'y'}, or {'y':(2)2} for a part of an axis.
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", instruction.rest)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    # [groups, size]<=[devices...]
    iota = instruction.attribute(r"replica_groups=\[\d+,(\d+)\]")
    return int(iota) if iota else num_devices


def arrays(type_text: str) -> list[Array]:
    """Element type and dimensions of each array in an HLO type."""
    found = re.findall(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]", type_text)
    return [(dtype, tuple(int(d) for d in dims.split(",") if d)) for dtype, dims in found]


def operands(instruction: Instruction) -> list[str]:
    """Names of the instructions whose results an instruction takes."""
    inside = instruction.rest[: _closing_parenthesis("(" + instruction.rest) - 1]
    return re.findall(r"%([\w.\-<>]+)", inside)


def trip_count(loop: Instruction, computations: Mapping[str, Sequence[Instruction]]) -> int | None:
    """Iterations of a loop that counts up from 0 to a constant, as `jax.lax.scan` makes them."""
    stated = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if stated:
        return int(stated)
    instructions = list(computations.get(loop.attribute(r"condition=%?([\w.\-]+)") or "", ()))
    for instruction in list(instructions):
        for callee in callees(instruction):
            instructions += computations.get(callee, ())
    bounds = [
        int(i.rest.split(")")[0])
        for i in instructions
        if i.opcode == "constant" and re.match(r"[su]32\[\]", i.type)
    ]
    counts_up = any("direction=LT" in i.rest for i in instructions)
    return max(bounds) if bounds and counts_up else None


def callees(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs, but for a loop's."""
    attributes = "calls|to_apply|true_computation|false_computation"
    names = re.findall(rf"(?:{attributes})=%?([\w.\-<>]+)", instruction.rest)
    branches = instruction.attribute(r"branch_computations=\{([^}]*)\}")
    if branches:
        names += [name.strip().removeprefix("%") for name in branches.split(",")]
    return names
