"""Forwards of one function on two sides, with the same weights, in turns."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from internvideo_jax.environment import usable_cpus
from internvideo_jax.launch.benchmarks.runner import (
    Details,
    Row,
    Sample,
    interleave,
    say,
    worker,
)

# Runs to the end; returns arrays of the side's own kind.
Forward = Callable[[], Sequence[Any]]

# Of the largest output. Rounding alone gives 1e-6 for B14.
TOLERANCE = 1e-5


def check_threads(threads: int) -> None:
    """Refuses more threads than there are CPUs.

    Raises:
      ValueError: so many.
    """
    if threads > usable_cpus():
        raise ValueError(
            f"expected at most {usable_cpus()} threads, one for each CPU, found {threads};"
            " lower --threads"
        )


def race(
    name: str,
    sides: Sequence[str],
    prepare: Callable[..., Forward],
    *arguments: Any,
    threads: int,
    repeats: int,
    details: Details,
    tolerance: float = TOLERANCE,
) -> Row:
    """Times the sides' forwards in turns, each in a process of its own, once their outputs agree.

    Args:
      name: of the row.
      sides: this library, and the peer if there is one.
      prepare: makes a side's forward there, from its name and `arguments`. A first run, which is
        not counted, compiles and warms what can be warmed.
      arguments: of `prepare`.
      threads: of each side, on so many CPUs.
      repeats: timed runs of each side.
      details: of the row; beside a peer, `difference_from_peer` is added.
      tolerance: of differences of outputs, relative to the largest value of each.

    Raises:
      ValueError: the two sides' outputs disagree.
    """
    details = {**details, "threads": threads, "dtype": "float32"}
    runs: dict[str, Callable[[], Sample]] = {}
    outputs = []
    with ExitStack() as stack:
        for side in sides:
            (seconds, output), runs[side] = stack.enter_context(
                worker(_ready, prepare, side, arguments, threads=threads)
            )
            say(f"{name}: {side} is ready after {seconds:.3g} s")
            outputs.append(output)
        if len(outputs) > 1:
            details["difference_from_peer"] = difference(*outputs, tolerance=tolerance)
        return interleave(name, runs, repeats, details)


def _ready(
    prepare: Callable[..., Forward], side: str, arguments: tuple[Any, ...]
) -> tuple[Forward, tuple[float, list[np.ndarray]]]:
    """A side's forward, the seconds until it was ready, and what its first run gave."""
    start = time.perf_counter()
    forward = prepare(side, *arguments)
    outputs = [np.asarray(x) for x in forward()]
    return forward, (time.perf_counter() - start, outputs)


def random_parameters(module: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters of a module by their paths, joined by `/`: normal numbers of usual sizes."""
    from flax import traverse_util

    from internvideo_jax.models import abstract_variables

    shapes = traverse_util.flatten_dict(abstract_variables(module)["params"], sep="/")
    return {path: _values(path, leaf.shape, rng) for path, leaf in shapes.items()}


def _values(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    kind = path.rsplit("/", 1)[-1]
    if kind == "scale":
        return 1 + 0.1 * noise
    # Layer scales are near 0 in a fresh model, where the blocks would hardly be compared.
    return (0.1 if kind == "gamma" else 0.02) * noise


def on_device(params: Any) -> dict[str, Any]:
    """JAX's variables of parameters by their paths."""
    import jax
    from flax import traverse_util

    arrays = {path: jax.device_put(array) for path, array in params.items()}
    return {"params": traverse_util.unflatten_dict(arrays, sep="/")}


def difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *, tolerance: float = TOLERANCE
) -> float:
    """`relative_difference` of two sides' outputs.

    Raises:
      ValueError: it exceeds the tolerance, or is NaN.
    """
    found = relative_difference(ours, theirs)
    if not found <= tolerance:
        raise ValueError(
            f"expected outputs that agree with the peer's within {tolerance:g}, found a difference"
            f" of {found:.2g}: times of different functions are not compared"
        )
    return found


def relative_difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest difference in any array relative to the largest value of the second side's."""
    pairs = zip(ours, theirs, strict=True)
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))
