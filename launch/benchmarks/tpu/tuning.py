"""The search for sizes of our attention kernels' blocks, by the TPU compiler's count of cycles."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from internvideo_jax.launch.benchmarks.runner import say
from internvideo_jax.launch.benchmarks.static_profile import attention_plan, profile_kernel

# What stands for a class of shapes: batch, queries, keys, heads, channels.
TUNED = {
    "short": (32, 417, 417, 16, 88),
    "frame": (64, 257, 257, 25, 128),
    "narrow": (8, 2049, 2049, 16, 88),
    "wide": (8, 2049, 2049, 25, 128),
}
PASSES = ("forward", "backward")

# Heads, tile, chunk.
Sizes = tuple[int, int, int]

# Fewer cycles by less than this share are none.
_NOISE = 0.002


@dataclasses.dataclass(frozen=True)
class TunedRow:
    """The best sizes of an entry of the table.

    Attributes:
      chip, kernel_pass, shape_class: the entry.
      sizes: heads, tile, chunk.
      cycles: with them, of the batch of `TUNED`.
      table_cycles: with those of the table; None if it gives none.
    """

    chip: str
    kernel_pass: str
    shape_class: str
    sizes: Sizes
    cycles: int
    table_cycles: int | None

    def to_json(self) -> dict[str, Any]:
        """The row as it is."""
        return dataclasses.asdict(self)


def tune_attention(chips: Sequence[str], shapes: Sequence[str] = ()) -> Iterator[TunedRow]:
    """Searches sizes for entries of the kernels' table; yields them as they come.

    It begins with those of the table. Each of the three is doubled and halved, and the best of
    these six neighbours takes their place, until none is better.

    Args:
      chips: kinds of TPUs.
      shapes: those of `TUNED` that are searched, as "2049x16x88"; all by default.
    """
    for chip, kind, kernel_pass in itertools.product(chips, TUNED, PASSES):
        _, tokens, _, *rest = TUNED[kind]
        if shapes and "x".join(map(str, (tokens, *rest))) not in shapes:
            continue
        cycles = functools.cache(functools.partial(_cycles, chip, kernel_pass, kind))
        of_table = attention_plan(chip, kernel_pass, TUNED[kind])
        start = best = (of_table.heads, of_table.tile, of_table.chunk)
        while cycles(found := min(_neighbours(best), key=cycles)) < cycles(best) * (1 - _NOISE):
            best = found
        if (fewest := cycles(best)) < math.inf:
            before = cycles(start)
            yield TunedRow(
                chip,
                kernel_pass,
                kind,
                best,
                int(fewest),
                int(before) if before < math.inf else None,
            )


def _cycles(chip: str, kernel_pass: str, kind: str, sizes: Sizes) -> float:
    """Infinite where the sizes do not fit, or where smaller ones would take their place."""
    batch, _, _, heads, _ = TUNED[kind]
    try:
        plan = attention_plan(chip, kernel_pass, TUNED[kind], sizes=sizes)
    except ValueError:
        return math.inf
    if (plan.heads, plan.tile, plan.chunk) != sizes:
        return math.inf
    found = profile_kernel(chip, kernel_pass, plan, batch * heads)
    say(f"{chip} {kernel_pass} {kind} {sizes}: {found.cycles} cycles, {found.status}")
    return math.inf if found.cycles is None else found.cycles


def _neighbours(sizes: Sizes) -> list[Sizes]:
    heads, tile, chunk = sizes
    found = [(2 * heads, tile, chunk), (heads, 2 * tile, chunk), (heads, tile, 2 * chunk)]
    if heads > 1:
        found.append((heads // 2, tile, chunk))
    if tile > 128:
        found.append((heads, tile // 2, chunk))
    if chunk > 128:
        found.append((heads, tile, chunk // 2))
    return found
