"""The video encoder's forward beside the same model in PyTorch."""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from internvideo_jax import config as configs
from internvideo_jax.environment import usable_cpus
from internvideo_jax.launch.benchmarks.processes import Say, Worker, interleave, sides
from internvideo_jax.launch.benchmarks.report import Row
from internvideo_jax.models import abstract_variables
from internvideo_jax.models.video_vit import VideoViT, VideoViTConfig

Outputs = dict[str, np.ndarray]

# Of the largest output. Rounding alone gives 1e-6 for B14.
TOLERANCE = 1e-5


def benchmark_encoder(
    name: str, config: VideoViTConfig, *, batch_size: int, threads: int, repeats: int, say: Say
) -> Row:
    """Times compiled forwards in float32, in turns with PyTorch's where that is installed.

    Args:
      name: of the row.
      config: an encoder with tanh GELU and joint positions, which is what the peer has.
      batch_size: clips per forward.
      threads: of each side, on so many CPUs.
      repeats: timed runs of each side, after a first one that is not counted.
      say: called with a line of progress.

    Raises:
      ValueError: the two sides' outputs disagree, or there are fewer CPUs than threads.
    """
    if threads > usable_cpus():
        raise ValueError(
            f"expected at most {usable_cpus()} threads, one for each CPU, found {threads};"
            " lower --threads"
        )
    names = sides("PyTorch", "torch", "pip install 'internvideo-jax[torch]'", say)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="internvideo-benchmark-"))
        write_job(Path(folder), config, batch_size, threads)
        workers = {}
        for side in names:
            workers[side] = stack.enter_context(Worker("encoder_worker", side, folder))
            facts = workers[side].answer()
            say(f"{name}: {side} is ready after {facts['preparation_seconds']:.3g} s")
        details: dict[str, Any] = {"batch_size": batch_size, "threads": threads, "dtype": "float32"}
        ours, *theirs = (read_outputs(Path(folder), side) for side in names)
        if theirs:
            details["difference_from_peer"] = difference(ours, *theirs)
        runs = {side: worker.measure for side, worker in workers.items()}
        return interleave(name, runs, repeats, say, details)


def write_job(folder: Path, config: VideoViTConfig, batch_size: int, threads: int) -> None:
    """Writes what both workers read: `job.json`, `video.npy` and `params/`, random numbers all."""
    rng = np.random.default_rng(0)
    (video,) = VideoViT(config).example_inputs(batch_size)
    np.save(folder / "video.npy", rng.standard_normal(video.shape, np.float32))
    shapes = traverse_util.flatten_dict(abstract_variables(VideoViT(config))["params"], sep="/")
    for path, leaf in shapes.items():
        file = folder / "params" / f"{path}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, _values(path, leaf.shape, rng))
    job = {"config": configs.to_dict(config), "params": list(shapes), "threads": threads}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def _values(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    kind = path.rsplit("/", 1)[-1]
    if kind == "scale":
        return 1 + 0.1 * noise
    # Layer scales are near 0 in a fresh model, where the blocks would hardly be compared.
    return (0.1 if kind == "gamma" else 0.02) * noise


def read_outputs(folder: Path, side: str) -> Outputs:
    """What a worker's first forward gave: tokens `[B, N, D]` and pooled `[B, P]`."""
    with np.load(folder / f"{side}.npz") as file:
        return dict(file)


def difference(ours: Outputs, theirs: Outputs) -> float:
    """The largest difference in any output relative to that output's largest value.

    Raises:
      ValueError: it exceeds `TOLERANCE`, or there are NaNs.
    """
    found = float(
        np.max([np.abs(ours[k] - theirs[k]).max() / np.abs(theirs[k]).max() for k in theirs])
    )
    if not found <= TOLERANCE:
        raise ValueError(
            f"expected outputs that agree with the peer's within {TOLERANCE:g}, found a difference"
            f" of {found:.2g}: times of different functions are not compared"
        )
    return found
