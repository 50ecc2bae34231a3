"""Attention on TPUs by the compiler's own count of cycles, ours beside the libraries'.

One protocol for all: one clip with all its heads is compiled in one call, exact lengths are asked
for, each takes its operands in the layout that it likes best (projections write any), and copies
that the compiler puts around a kernel count.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from internvideo_jax.kernels.attention.shapes import Shape
from internvideo_jax.launch.benchmarks.runner import say
from internvideo_jax.launch.benchmarks.static_profile import (
    CHIPS,
    Profile,
    compile_estimated,
    profile,
)
from internvideo_jax.launch.benchmarks.tpu import blocks as layers
from internvideo_jax.launch.benchmarks.tpu.programs import PROGRAMS, Case, make_program

CASES = (
    Case(Shape(2049, 16, 88)),
    Case(Shape(417, 16, 88), batch=32, clips=2),
    Case(Shape(2049, 25, 128)),
    Case(Shape(4097, 25, 128), heads=5),
    Case(Shape(257, 25, 128), batch=64, clips=8, forward_only=True),
    Case(Shape(2048, 16, 88), forward_only=True),
    # A language model's.
    Case(Shape(2048, 32, 128), heads=8, kv_heads=8, is_causal=True),
)

# Splash attention needs newer versions than ours. Recorded with libtpu 0.0.51, one head scaled
# linearly, which flatters it by 2 to 6 %: forward and both passes, in ms. Padded to 2304 and 512
# tokens, or without the class token.
SPLASH = {
    ("v5e", "2049x16x88"): (0.299, 0.919),
    ("v6e", "2049x16x88"): (0.160, 0.444),
    ("v5e", "417x16x88"): (0.045, 0.091),
    ("v6e", "417x16x88"): (0.026, 0.052),
    ("v5p", "417x16x88"): (0.039, 0.099),
    ("v5e", "2049x25x128"): (0.364, 1.104),
    ("v6e", "2049x25x128"): (0.204, 0.547),
    ("v5p", "2049x25x128"): (0.150, 0.808),
    ("v5e", "4097x25x128"): (1.241, 4.33),
    ("v6e", "4097x25x128"): (0.642, 1.97),
    ("v5e", "2048x16x88"): (0.246, None),
    ("v6e", "2048x16x88"): (0.132, None),
    ("v5p", "2048x16x88"): (0.133, None),
}

IMPLEMENTATIONS = (*PROGRAMS, "splash")


@dataclasses.dataclass(frozen=True)
class AttentionRow:
    """One implementation of one case on one kind of chip.

    Attributes:
      shape: tokens x heads x channels, and whether they are causal.
      batch: clips on a device.
      chip: kind of TPU.
      implementation: which.
      forward_ms, forward_backward_ms: of one clip; None where it is not known or not needed.
      hbm_bytes: of one clip, of both passes where both are needed.
      status: "ok", or what the numbers are worth.
    """

    shape: str
    batch: int
    chip: str
    implementation: str
    forward_ms: float | None
    forward_backward_ms: float | None
    hbm_bytes: int | None
    status: str

    def to_json(self) -> dict[str, Any]:
        """The row as it is."""
        return dataclasses.asdict(self)


def benchmark_attention(
    chips: Sequence[str],
    shapes: Sequence[str] = (),
    implementations: Sequence[str] = IMPLEMENTATIONS,
    *,
    blocks: bool = False,
) -> Iterator[AttentionRow]:
    """Counts cycles of every implementation and case; yields rows as they come.

    Args:
      chips: kinds of TPUs.
      shapes: names of the cases; all by default.
      implementations: names of `IMPLEMENTATIONS`.
      blocks: of whole layers around attention.
    """
    cases = layers.BLOCKS if blocks else CASES
    for chip, case, name in itertools.product(chips, cases, implementations):
        if shapes and case.name not in shapes:
            continue
        if blocks:
            if name not in layers.IMPLEMENTATIONS:
                continue
            row: AttentionRow | None = measure_block(chip, case, name)
        else:
            row = _recorded(chip, case) if name == "splash" else measure(chip, case, name)
        if row is not None:
            say(f"{chip} {case.name} {name}: {_times(row)}, {row.status}")
            yield row


def measure(chip: str, case: Case, implementation: str) -> AttentionRow:
    """Compiles a case's one or two programs.

    XLA's are estimated by operation: the profile would count their loops once.
    """
    look = profile
    if implementation == "xla":
        look = compile_estimated
        # The scores of few clips would stay in fast memory.
        case = dataclasses.replace(case, clips=case.batch, heads=None)
    forward = look(chip, make_program, implementation, case, False)
    both = None if case.forward_only else look(chip, make_program, implementation, case, True)
    return _row(chip, case, implementation, forward, both)


def measure_block(chip: str, case: Case, implementation: str) -> AttentionRow:
    """Compiles a layer around a case, forward and with gradients."""
    estimate = layers.estimate_block
    forward = estimate(chip, case, implementation, False)
    both = None if case.forward_only else estimate(chip, case, implementation, True)
    return _row(chip, case, implementation, forward, both)


def _row(
    chip: str, case: Case, implementation: str, forward: Profile, both: Profile | None
) -> AttentionRow:
    last = both or forward

    def milliseconds(of: Profile | None) -> float | None:
        return None if of is None or of.seconds is None else of.seconds * case.share * 1e3

    size = None if last.hbm_bytes is None else round(last.hbm_bytes * case.share)
    bad = [x.status for x in (forward, both) if x is not None and x.status != "ok"]
    return AttentionRow(
        case.name,
        case.batch,
        chip,
        implementation,
        milliseconds(forward),
        milliseconds(both),
        size,
        bad[0] if bad else "ok",
    )


def _recorded(chip: str, case: Case) -> AttentionRow | None:
    times = SPLASH.get((chip, case.name))
    if times is None:
        return None
    return AttentionRow(case.name, case.batch, chip, "splash", *times, None, "recorded, padded")


def table(rows: Sequence[Any]) -> str:
    """Rows of one kind as one Markdown table."""
    shown = [{name: _cell(x) for name, x in row.to_json().items()} for row in rows]
    if not shown:
        return "nothing was measured"
    widths = {name: max(len(name), *(len(row[name]) for row in shown)) for name in shown[0]}
    lines = [{name: name for name in widths}, {n: "-" * width for n, width in widths.items()}]
    return "\n".join(
        "| " + " | ".join(row[name].ljust(width) for name, width in widths.items()) + " |"
        for row in lines + shown
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)


def _times(row: AttentionRow) -> str:
    times = (row.forward_ms, row.forward_backward_ms)
    return " / ".join("-" if x is None else f"{x:.4f}" for x in times) + " ms"


def check_names(
    chip: str, shape: str | None = None, implementation: str | None = None
) -> tuple[list[str], list[str], list[str]]:
    """The kinds of chips, the shapes and the implementations that options name.

    Raises:
      ValueError: an unknown one.
    """
    found = []
    for option, value, known in (
        ("--chip", chip, list(CHIPS)),
        ("--shape", shape, [case.name for case in CASES]),
        ("--implementation", implementation, list(IMPLEMENTATIONS)),
    ):
        found.append(value.split(",") if value else known)
        for name in found[-1]:
            if name not in known:
                expected = f"one or more of {','.join(known)}"
                raise ValueError(f"expected {option} as {expected}, found {name!r}")
    chips, shapes, implementations = found
    return chips, shapes, implementations
