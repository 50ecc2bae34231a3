"""How long the attention kernels of a compiled program take, of which XLA has no estimate."""

import functools
import sys

from internvideo_jax.launch.benchmarks.static_profile import CHIPS, pallas_cycles
from internvideo_jax.parallel.step_time import Kernel, KernelCycles

_DTYPES = {"bf16": "bfloat16", "f32": "float32"}
_PASSES = ("forward", "backward")


def kernel_cycles(generation: str) -> KernelCycles:
    """What calls of kernels take on a kind of TPU, by profiles of their scheduled instructions.

    For each shape, a part of a call is compiled once more, in processes of its own.

    Args:
      generation: of TPU, as the compiler names it.

    Returns:
      A function that gives the cycles of a call, but None for other kernels than attention's, for
      heads that share keys, and where there is no profile.
    """

    def cycles(kernel: Kernel) -> int | None:
        names = [name for name in _PASSES if kernel.name.startswith(f"attention_{name}")]
        if not names or generation not in CHIPS:
            return None
        (dtype, (heads, head_dim, queries)), (_, (key_heads, _, keys)) = kernel.operands[:2]
        if key_heads != heads:
            return None
        return _profiled(generation, names[0], (queries, keys, heads, head_dim), _DTYPES[dtype])

    return cycles


@functools.cache
def _profiled(
    generation: str, name: str, shape: tuple[int, int, int, int], dtype: str
) -> int | None:
    """Cycles of a pass of attention; shape: queries, keys, heads of all examples, channels."""
    queries, keys, heads, head_dim = shape
    what = f"attention {name}, {queries} by {keys} tokens, {heads} heads of {head_dim}"
    print(f"profiling {what} ...", file=sys.stderr, flush=True)
    is_forward = name == "forward"
    try:
        return pallas_cycles(generation, is_forward, 1, queries, keys, heads, head_dim, dtype)
    except ValueError as error:
        print(f"left out of the estimate: {error}", file=sys.stderr, flush=True)
        return None
