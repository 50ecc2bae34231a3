"""What is timed on a GPU, how, and what comes out; without JAX and PyTorch, which take turns."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

# Seconds of one sample of an operation, which is called as often as that takes, and samples of
# everything, whose median counts.
_SAMPLE_S, _MAX_CALLS = 0.05, 1000
SAMPLES = 10


@dataclass(frozen=True)
class Attention:
    """Self-attention in bfloat16.

    Attributes:
      batch, tokens, heads, head_dim: B, N, H, D.
      kv_heads: Hkv; None for H.
      is_causal: whether a token sees what comes before it alone.
      is_trained: whether gradients are timed too.
    """

    batch: int
    tokens: int
    heads: int
    head_dim: int
    kv_heads: int | None = None
    is_causal: bool = False
    is_trained: bool = True

    @property
    def shape(self) -> str:
        """E.g. "2049x16x88"."""
        return f"{self.tokens}x{self.heads}x{self.head_dim}"


@dataclass(frozen=True)
class Encoder:
    """Forward of the 1B encoder on clips of 8x224x224, or its forward and gradients.

    Attributes:
      name: of the work.
      batch: clips.
      kept: tokens that are left of each clip; None for all.
      is_trained: whether there are gradients, of float32 parameters.
      faster: how many times faster than the peer's best row it should be.
    """

    name: str
    batch: int
    kept: int | None = None
    is_trained: bool = False
    faster: float = 1.0


Case = Attention | Encoder
Side = Literal["ours", "peer"]


class Row(NamedTuple):
    """One implementation of one case.

    Attributes:
      case: what was timed.
      side: whose it is.
      implementation: which of its ways.
      forward_ms, forward_backward_ms: milliseconds; None for what was not timed.
      peak_gb: memory in 10^9 bytes; None for operations.
      status: "ok", or why there are no times.
    """

    case: Case
    side: Side
    implementation: str
    forward_ms: float | None = None
    forward_backward_ms: float | None = None
    peak_gb: float | None = None
    status: str = "ok"

    @property
    def ms(self) -> float:
        """The time that counts in comparisons; infinite without one."""
        is_trained = self.case.is_trained
        found = self.forward_backward_ms if is_trained else self.forward_ms
        return math.inf if found is None else found

    def timed(self, ms: float, peak_gb: float | None) -> "Row":
        """The row with the time that counts."""
        if self.case.is_trained:
            return self._replace(forward_backward_ms=ms, peak_gb=peak_gb)
        return self._replace(forward_ms=ms, peak_gb=peak_gb)

    def to_json(self, chip: str) -> dict[str, Any]:
        """The row as `benchmark attention` has it, and in the same way for encoders."""
        case = self.case
        name = case.shape if isinstance(case, Attention) else case.name
        return {
            "shape": name,
            "batch": case.batch,
            "chip": chip,
            "implementation": self.implementation,
            "forward_ms": self.forward_ms,
            "forward_backward_ms": self.forward_backward_ms,
            "hbm_bytes": None,
            "peak_gb": self.peak_gb,
            "status": self.status,
        }


# The models' own shapes: 1B and 6B with all tokens and masked, their teachers, 4 and 16 frames, B14
# on images, VideoMAE-L, a language model.
ATTENTION = (
    Attention(16, 2049, 16, 88),
    Attention(32, 417, 16, 88),
    Attention(8, 2049, 25, 128),
    Attention(32, 411, 25, 128),
    Attention(64, 257, 25, 128, is_trained=False),
    Attention(16, 2048, 16, 88, is_trained=False),
    Attention(16, 1025, 16, 88),
    Attention(8, 4097, 16, 88),
    Attention(4, 4097, 25, 128),
    Attention(64, 197, 12, 64),
    Attention(16, 1569, 16, 80),
    Attention(1, 8192, 32, 128, kv_heads=8, is_causal=True, is_trained=False),
)
ENCODERS = (
    Encoder("forward", 16, faster=1.1),
    Encoder("training", 8, is_trained=True),
    Encoder("masked training", 32, kept=417, is_trained=True),
)

# The same, so small that a CPU does it in no time.
SMALL_ATTENTION = (
    Attention(2, 33, 2, 8),
    Attention(2, 16, 4, 8, kv_heads=2, is_causal=True, is_trained=False),
)
SMALL_ENCODERS = (
    Encoder("forward", 2, faster=1.1),
    Encoder("training", 2, is_trained=True),
    Encoder("masked training", 2, kept=5, is_trained=True),
)


def milliseconds(
    run: Callable[[], Any], wait: Callable[[Any], Any], *, is_short: bool, samples: int
) -> float:
    """Median time of a call that is warm already.

    Args:
      run: starts the work.
      wait: until all work is done whose last result it is given.
      is_short: calls follow each other without waiting, many in a sample.
      samples: how many.
    """

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait(result)
        return (time.perf_counter() - start) / calls

    calls = min(math.ceil(_SAMPLE_S / seconds(3)), _MAX_CALLS) if is_short else 1
    return 1e3 * median(seconds(calls) for _ in range(samples))


def measured(
    tasks: Sequence[tuple[Row, Callable[[], Row]]], limit_s: float, say: Callable[[str], None]
) -> Iterator[Row]:
    """The rows of tasks, one after the other; the status says what became of one that failed.

    Args:
      tasks: an empty row and what fills it, by turns.
      limit_s: no task is begun after that.
      say: told of each.
    """
    start = time.perf_counter()
    for empty, run in tasks:
        if time.perf_counter() - start > limit_s:
            row = empty._replace(status=f"left out after {limit_s:.0f} s")
        else:
            try:
                row = run()
            except Exception as error:
                # A way that this version or card does not have, or its memory: others are next.
                reason = " ".join(str(error).split())[:200]
                row = empty._replace(status=f"{type(error).__name__}: {reason}")
        shown = f"{row.ms:.3f} ms" if row.status == "ok" else row.status
        say(f"{row.to_json('')['shape']}, {row.implementation}: {shown}")
        yield row
