"""Attention on TPUs by the compiler's own count of cycles, ours beside the libraries'.

One protocol for all: one clip with all its heads is compiled in one call, exact lengths are asked
for, each takes its operands in the layout that it likes best (projections write any), and copies
that the compiler puts around a kernel count.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from internvideo_jax.kernels.attention.shapes import Shape
from internvideo_jax.launch.benchmarks.runner import say
from internvideo_jax.launch.benchmarks.static_profile import CHIPS, Profile, profile
from internvideo_jax.launch.benchmarks.static_profile import Shape as ArrayShape

Program = tuple[Callable[..., Any], Sequence[ArrayShape]]


@dataclasses.dataclass(frozen=True)
class Case:
    """Self-attention as a model runs it.

    Attributes:
      shape: tokens, heads and channels of each.
      batch: clips on a device.
      clips: of which so many are compiled; more than one where a step of the grid is short.
      heads: of which so many are compiled, where all would take too long.
      forward_only: whether the model is frozen.
    """

    shape: Shape
    batch: int = 1
    clips: int = 1
    heads: int | None = None
    forward_only: bool = False

    @property
    def name(self) -> str:
        """Tokens, heads and channels."""
        return "x".join(map(str, self.shape))

    @property
    def compiled_heads(self) -> int:
        """Of all clips that are compiled."""
        return self.clips * (self.heads or self.shape.heads)

    @property
    def share(self) -> float:
        """One clip's part of what is compiled."""
        return self.shape.heads / self.compiled_heads


CASES = (
    Case(Shape(2049, 16, 88)),
    Case(Shape(417, 16, 88), batch=32, clips=2),
    Case(Shape(2049, 25, 128)),
    Case(Shape(4097, 25, 128), heads=5),
    Case(Shape(257, 25, 128), batch=64, clips=2, forward_only=True),
    Case(Shape(2048, 16, 88), forward_only=True),
)

# jax's flash attention takes whole blocks only: to what length tokens are padded, and the block
# that was fastest of those that fit.
FLASH_BLOCKS = {417: (512, 512), 257: (384, 384), 2048: (2048, 1024), 2049: (2304, 768)}
FLASH_BLOCKS[4097] = (4608, 768)

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

# What stands for a class of shapes in the search for block sizes, and the sizes that are tried.
TUNED = {
    "short": Case(Shape(417, 16, 88)),
    "narrow": Case(Shape(2049, 4, 88)),
    "wide": Case(Shape(2049, 4, 128)),
}
TILES = (256, 512, 1024)
CHUNKS = (128, 256, 512, 1024)
SHORT_HEADS = (2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class AttentionRow:
    """One implementation of one case on one kind of chip.

    Attributes:
      shape: tokens x heads x channels.
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

    @property
    def holds(self) -> bool:
        """True: times are not judged."""
        return True

    def to_json(self) -> dict[str, Any]:
        """The row as it is."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class TunedRow:
    """The best sizes of an entry of the table.

    Attributes:
      chip, kernel_pass, shape_class: the entry.
      sizes: heads, tile, chunk.
      cycles: with them.
      table_cycles: with those of the table.
    """

    chip: str
    kernel_pass: str
    shape_class: str
    sizes: tuple[int, int, int]
    cycles: int
    table_cycles: int | None

    @property
    def holds(self) -> bool:
        """True: times are not judged."""
        return True

    def to_json(self) -> dict[str, Any]:
        """The row as it is."""
        return dataclasses.asdict(self)


def benchmark_attention(chips: Sequence[str], shapes: Sequence[str] = ()) -> list[AttentionRow]:
    """Counts cycles of every implementation and case.

    Args:
      chips: kinds of TPUs.
      shapes: names of the cases; all by default.
    """
    rows = []
    for chip, case in itertools.product(chips, CASES):
        if shapes and case.name not in shapes:
            continue
        for name in PROGRAMS:
            rows.append(measure(chip, case, name))
            say(f"{chip} {case.name} {name}: {_times(rows[-1])}, {rows[-1].status}")
        if (recorded := SPLASH.get((chip, case.name))) is not None:
            rows.append(
                AttentionRow(
                    case.name, case.batch, chip, "splash", *recorded, None, "recorded, padded"
                )
            )
    return rows


def measure(chip: str, case: Case, implementation: str) -> AttentionRow:
    """Compiles a case's one or two programs."""
    forward = profile(chip, make_program, implementation, case, False)
    both = None if case.forward_only else profile(chip, make_program, implementation, case, True)
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


def tune_attention(chips: Sequence[str]) -> list[TunedRow]:
    """Tries sizes of blocks, and tells the best of every entry of the kernels' table."""
    rows = []
    for chip, kernel_pass, kind in itertools.product(chips, ("forward", "backward"), TUNED):
        case = TUNED[kind]
        of_table = profile(chip, make_kernel, case, kernel_pass, None).cycles
        best: tuple[int, tuple[int, int, int]] | None = None
        for sizes in _candidates(kind):
            found = profile(chip, make_kernel, case, kernel_pass, sizes)
            say(f"{chip} {kernel_pass} {kind} {sizes}: {found.cycles} cycles, {found.status}")
            if found.cycles is not None and (best is None or found.cycles < best[0]):
                best = found.cycles, sizes
        if best is not None:
            rows.append(TunedRow(chip, kernel_pass, kind, best[1], best[0], of_table))
    return rows


def _candidates(kind: str) -> Iterator[tuple[int, int, int]]:
    if kind == "short":
        for heads, chunk in itertools.product(SHORT_HEADS, CHUNKS[:3]):
            yield heads, 512, chunk
    else:
        for tile, chunk in itertools.product(TILES, CHUNKS):
            yield 1, tile, chunk


def make_program(implementation: str, case: Case, backward: bool) -> Program:
    """A case by an implementation, in a process that compiles for TPUs."""
    return PROGRAMS[implementation](case, backward)


def pallas_tpu(case: Case, backward: bool) -> Program:
    """Our kernels, on arrays that the projections write: [heads, channels, tokens]."""
    from internvideo_jax.kernels.attention.pallas_tpu.backward import backward as run_backward
    from internvideo_jax.kernels.attention.pallas_tpu.forward import forward as run_forward

    plans = _plans(case)

    def forward(q: Any, k: Any, v: Any) -> Any:
        return run_forward(plans("forward"), q, k, v, False)[0]

    def both(q: Any, k: Any, v: Any, d_out: Any) -> Any:
        out, lse = run_forward(plans("forward"), q, k, v, False)
        operands = (q, k, v, out, lse, d_out)
        return out, run_backward(plans("backward"), *operands, None, False)

    shape = _tokens_last(case)
    return (both, [shape] * 4) if backward else (forward, [shape] * 3)


def make_kernel(case: Case, kernel_pass: str, sizes: tuple[int, int, int] | None) -> Program:
    """One of our kernels with other sizes than the table's."""
    from internvideo_jax.kernels.attention.pallas_tpu.backward import backward as run_backward
    from internvideo_jax.kernels.attention.pallas_tpu.forward import forward as run_forward

    plans = _plans(case, sizes)
    shape = _tokens_last(case)
    if kernel_pass == "forward":
        return lambda q, k, v: run_forward(plans("forward"), q, k, v, False), [shape] * 3

    def gradients(q: Any, k: Any, v: Any, out: Any, d_out: Any, lse: Any) -> Any:
        plan = plans("backward")
        return run_backward(plan, q, k, v, out, lse, d_out, None, False)

    (heads, _, lanes), _ = shape
    return gradients, [shape] * 5 + [((heads, 1, lanes), "float32")]


def _plans(case: Case, sizes: tuple[int, int, int] | None = None) -> Callable[[str], Any]:
    from internvideo_jax.kernels.attention import Request
    from internvideo_jax.kernels.attention.pallas_tpu.plan import make_plan
    from internvideo_jax.kernels.attention.pallas_tpu.table import Sizes

    (tokens, _, head_dim), heads = case.shape, case.compiled_heads // case.clips
    request = Request(
        case.clips, tokens, tokens, heads, heads, head_dim, "bfloat16", 1.0, platform="tpu"
    )
    chosen = None if sizes is None else Sizes(*sizes)
    return lambda name: make_plan(request, name, chosen)


def _tokens_last(case: Case) -> ArrayShape:
    """Of operands, with the padding that the memory's tiles have anyway.

    The profiler cannot follow the copies that XLA makes of odd arguments of whole programs.
    """
    return (
        case.compiled_heads,
        case.shape.head_dim,
        -(-case.shape.tokens // 128) * 128,
    ), "bfloat16"


def jax_flash(case: Case, backward: bool) -> Program:
    """The kernel that comes with JAX, with the best blocks; its segments hide the padding."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    tokens, _, head_dim = case.shape
    padded, block = FLASH_BLOCKS[tokens]
    fields = [field.name for field in dataclasses.fields(flash.BlockSizes)]
    sizes = flash.BlockSizes(**{n: 1 if n == "block_b" else block for n in fields})
    shape = ((case.clips, case.compiled_heads // case.clips, padded, head_dim), "bfloat16")

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        ids = None
        if padded != tokens:
            hidden = (jnp.arange(padded) >= tokens).astype(jnp.int32)
            hidden = jnp.broadcast_to(hidden, (case.clips, padded))
            ids = flash.SegmentIds(hidden, hidden)
        return flash.flash_attention(
            q, k, v, segment_ids=ids, sm_scale=head_dim**-0.5, block_sizes=sizes
        )

    return _differentiated(forward, shape, backward)


def xla(case: Case, backward: bool) -> Program:
    """Products and softmax as XLA compiles them, all scores in memory."""
    import jax
    import jax.numpy as jnp

    tokens, _, head_dim = case.shape
    shape = ((case.clips, case.compiled_heads // case.clips, tokens, head_dim), "bfloat16")

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * head_dim**-0.5, axis=-1)
        return jnp.einsum("bhnm,bhmd->bhnd", weights.astype(q.dtype), v)

    return _differentiated(forward, shape, backward)


def _differentiated(forward: Callable[..., Any], shape: ArrayShape, backward: bool) -> Program:
    import jax

    def both(q: Any, k: Any, v: Any, d_out: Any) -> Any:
        out, pull_back = jax.vjp(forward, q, k, v)
        return out, pull_back(d_out)

    return (both, [shape] * 4) if backward else (forward, [shape] * 3)


PROGRAMS: dict[str, Callable[[Case, bool], Program]] = {
    "pallas_tpu": pallas_tpu,
    "jax_flash": jax_flash,
    "xla": xla,
}


def table(rows: Sequence[AttentionRow] | Sequence[TunedRow]) -> str:
    """All rows as one Markdown table."""
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


def check_names(chip: str, shape: str | None) -> tuple[list[str], list[str]]:
    """The kinds of chips and the shapes that options name.

    Raises:
      ValueError: an unknown one.
    """
    chips, shapes = chip.split(","), shape.split(",") if shape else []
    cases = [case.name for case in CASES]
    for option, names, known in (("--chip", chips, list(CHIPS)), ("--shape", shapes, cases)):
        for name in names:
            if name not in known:
                expected = f"one or more of {','.join(known)}"
                raise ValueError(f"expected {option} as {expected}, found {name!r}")
    return chips, shapes
