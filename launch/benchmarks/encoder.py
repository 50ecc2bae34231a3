"""The video encoder's forward beside the same model in PyTorch.

JAX is imported late, since it would count as memory of PyTorch's side.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax.config import from_dict, to_dict
from internvideo_jax.launch.benchmarks.forwards import (
    Forward,
    check_threads,
    on_device,
    race,
    random_parameters,
)
from internvideo_jax.launch.benchmarks.runner import OURS, Row, sides

if TYPE_CHECKING:
    from internvideo_jax.models.video_vit import VideoViTConfig

BATCH_SIZE = 4


def benchmark_encoder(*, threads: int, repeats: int) -> Row:
    """Times compiled forwards of B14 in float32, in turns with PyTorch's where that is installed.

    Args:
      threads: of each side, on so many CPUs.
      repeats: timed runs of each side, after a first one that is not counted.

    Raises:
      ValueError: the two sides' outputs disagree, or there are fewer CPUs than threads.
    """
    from internvideo_jax.models import video_vit

    check_threads(threads)
    # With tanh GELU and joint positions, which is what the peer has.
    config = video_vit.internvideo2_b14()
    with tempfile.TemporaryDirectory(prefix="internvideo-") as folder:
        write_inputs(Path(folder), config)
        return race(
            "encoder_forward/b14",
            sides("PyTorch", "pip install 'internvideo-jax[torch]'", "torch"),
            prepare,
            Path(folder),
            to_dict(config),
            threads,
            threads=threads,
            repeats=repeats,
            details={"batch_size": BATCH_SIZE},
        )


def write_inputs(folder: Path, config: "VideoViTConfig") -> None:
    """Writes what both sides read: `video.npy` and `params.npz`, random numbers all.

    Files, so that only what a side copies counts as its memory.
    """
    from internvideo_jax.models.video_vit import VideoViT

    rng = np.random.default_rng(0)
    (video,) = VideoViT(config).example_inputs(BATCH_SIZE)
    np.save(folder / "video.npy", rng.standard_normal(video.shape, np.float32))
    params: dict[str, Any] = random_parameters(VideoViT(config), rng)
    np.savez(folder / "params.npz", **params)


def prepare(side: str, folder: Path, config: dict[str, Any], threads: int) -> Forward:
    """A side's forward, which returns tokens `[B, N, D]` and pooled `[B, P]`."""
    video = np.load(folder / "video.npy")
    with np.load(folder / "params.npz") as params:
        if side == OURS:
            return jax_forward(params, video, config)
        return pytorch_forward(params, video, threads)


def jax_forward(params: Any, video: np.ndarray, config: dict[str, Any]) -> Forward:
    """This library's forward, compiled."""
    import jax

    from internvideo_jax.models import encode
    from internvideo_jax.models.video_vit import VideoViT, VideoViTConfig

    module = VideoViT(from_dict(VideoViTConfig, config))
    variables = on_device(params)
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
