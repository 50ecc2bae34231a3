"""The video encoder's forward beside the same model in PyTorch.

JAX is imported late, since it would count as memory of PyTorch's side.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax.config import from_dict, to_dict
from internvideo_jax.environment import usable_cpus
from internvideo_jax.launch.benchmarks.runner import (
    OURS,
    Row,
    Sample,
    interleave,
    say,
    sides,
    worker,
)

if TYPE_CHECKING:
    from internvideo_jax.models.video_vit import VideoViTConfig

# Runs to the end; returns tokens `[B, N, D]` and pooled `[B, P]` as arrays of its own kind.
Forward = Callable[[], tuple[Any, Any]]

# Of the largest output. Rounding alone gives 1e-6 for B14.
TOLERANCE = 1e-5


def benchmark_encoder(*, threads: int, repeats: int) -> Row:
    """Times compiled forwards of B14 in float32, in turns with PyTorch's where that is installed.

    Args:
      threads: of each side, on so many CPUs.
      repeats: timed runs of each side, after a first one that is not counted.

    Raises:
      ValueError: the two sides' outputs disagree, or there are fewer CPUs than threads.
    """
    from internvideo_jax.models import video_vit

    # With tanh GELU and joint positions, which is what the peer has.
    name, config, batch_size = "encoder_forward/b14", video_vit.internvideo2_b14(), 4
    if threads > usable_cpus():
        raise ValueError(
            f"expected at most {usable_cpus()} threads, one for each CPU, found {threads};"
            " lower --threads"
        )
    names = sides("PyTorch", "torch", "pip install 'internvideo-jax[torch]'")
    details: dict[str, Any] = {"batch_size": batch_size, "threads": threads, "dtype": "float32"}
    runs: dict[str, Callable[[], Sample]] = {}
    outputs = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="internvideo-")))
        write_inputs(folder, config, batch_size)
        for side in names:
            (seconds, output), runs[side] = stack.enter_context(
                worker(prepare, side, folder, to_dict(config), threads, threads=threads)
            )
            say(f"{name}: {side} is ready after {seconds:.3g} s")
            outputs.append(output)
        if len(outputs) > 1:
            details["difference_from_peer"] = difference(*outputs)
        return interleave(name, runs, repeats, details)


def write_inputs(folder: Path, config: "VideoViTConfig", batch_size: int) -> None:
    """Writes what both sides read: `video.npy` and `params.npz`, random numbers all.

    Files, so that only what a side copies counts as its memory.
    """
    from flax import traverse_util

    from internvideo_jax.models import abstract_variables
    from internvideo_jax.models.video_vit import VideoViT

    rng = np.random.default_rng(0)
    (video,) = VideoViT(config).example_inputs(batch_size)
    np.save(folder / "video.npy", rng.standard_normal(video.shape, np.float32))
    shapes = traverse_util.flatten_dict(abstract_variables(VideoViT(config))["params"], sep="/")
    params: dict[str, Any] = {path: _values(path, leaf.shape, rng) for path, leaf in shapes.items()}
    np.savez(folder / "params.npz", **params)


def _values(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    kind = path.rsplit("/", 1)[-1]
    if kind == "scale":
        return 1 + 0.1 * noise
    # Layer scales are near 0 in a fresh model, where the blocks would hardly be compared.
    return (0.1 if kind == "gamma" else 0.02) * noise


def prepare(
    side: str, folder: Path, config: dict[str, Any], threads: int
) -> tuple[Forward, tuple[float, list[np.ndarray]]]:
    """A side's forward, the seconds until it was ready, and what its first run gave."""
    start = time.perf_counter()
    video = np.load(folder / "video.npy")
    with np.load(folder / "params.npz") as params:
        if side == OURS:
            forward = jax_forward(params, video, config)
        else:
            forward = pytorch_forward(params, video, threads)
    # The first one compiles, and warms what can be warmed.
    outputs = [np.asarray(x) for x in forward()]
    return forward, (time.perf_counter() - start, outputs)


def jax_forward(params: Any, video: np.ndarray, config: dict[str, Any]) -> Forward:
    """This library's forward, compiled."""
    import jax
    from flax import traverse_util

    from internvideo_jax.models import encode
    from internvideo_jax.models.video_vit import VideoViT, VideoViTConfig

    module = VideoViT(from_dict(VideoViTConfig, config))
    on_device = {path: jax.device_put(array) for path, array in params.items()}
    variables = {"params": traverse_util.unflatten_dict(on_device, sep="/")}
    clips = jax.device_put(video)
    compiled = jax.jit(lambda variables, clips: encode(module, variables, clips))

    def forward() -> tuple[Any, Any]:
        output = jax.block_until_ready(compiled(variables, clips))
        return output.tokens, output.pooled

    return forward


def pytorch_forward(params: Any, video: np.ndarray, threads: int) -> Forward:
    """PyTorch's forward, in inference mode."""
    import torch

    from internvideo_jax.launch.benchmarks.torch_video_vit import TorchVideoViT

    torch.set_num_threads(threads)
    model = TorchVideoViT(params)
    clips = torch.from_numpy(video)

    @torch.inference_mode()
    def forward() -> tuple[Any, Any]:
        return model(clips)

    return forward


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference in any output relative to that output's largest value.

    Raises:
      ValueError: it exceeds `TOLERANCE`, or there are NaNs.
    """
    pairs = zip(ours, theirs, strict=True)
    found = float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))
    if not found <= TOLERANCE:
        raise ValueError(
            f"expected outputs that agree with the peer's within {TOLERANCE:g}, found a difference"
            f" of {found:.2g}: times of different functions are not compared"
        )
    return found
