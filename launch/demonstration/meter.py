"""What the parts of the demo cost, on what machine."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp


@dataclasses.dataclass
class Part:
    """Cost of a part.

    Attributes:
      name: what was done.
      seconds: on the clock.
      cpu_seconds: of all threads and finished child processes.
      flops: of the models' products, as the formulas count them; 0 if none were trained.
    """

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    flops: float = 0.0


@contextlib.contextmanager
def measured(parts: list[Part], name: str) -> Iterator[Part]:
    """Measures what is done within as a part, and adds it; its FLOPs are for the caller to set."""
    part = Part(name)
    began, cpu_began = time.perf_counter(), _cpu_seconds()
    yield part
    part.seconds = time.perf_counter() - began
    part.cpu_seconds = _cpu_seconds() - cpu_began
    parts.append(part)


def matmul_gflops(size: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of this machine's best float32 product of two matrices `[size, size]`."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))

    def seconds() -> float:
        began = time.perf_counter()
        jax.block_until_ready(product(x, x))
        return time.perf_counter() - began

    return 2e-9 * size**3 / min(seconds() for _ in range(repeats))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
