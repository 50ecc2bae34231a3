"""`python -m ...encoder_worker SIDE FOLDER`: one side of the encoder's benchmark.

FOLDER is what `encoder.write_job` made. The outputs of the first forward go to FOLDER/SIDE.npz.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.launch.benchmarks.processes import limit_threads, serve

# Runs to the end; returns tokens `[B, N, D]` and pooled `[B, P]` as arrays of its own kind.
Forward = Callable[[], tuple[Any, Any]]


class Params(Mapping[str, np.ndarray]):
    """The job's parameters by path, each mapped from its file when it is asked for.

    Only what a side copies counts as its memory.
    """

    def __init__(self, folder: Path, paths: list[str]) -> None:
        self._folder, self._paths = folder, dict.fromkeys(paths)

    def __getitem__(self, path: str) -> np.ndarray:
        if path not in self._paths:
            raise KeyError(path)
        return np.load(self._folder / f"{path}.npy", mmap_mode="r")

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def main() -> int:
    """Serves until the standard input ends."""
    side, folder = sys.argv[1], Path(sys.argv[2])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    limit_threads(job["threads"])
    params = Params(folder / "params", job["params"])
    video = np.load(folder / "video.npy")

    def prepare() -> tuple[Forward, dict[str, Any]]:
        start = time.perf_counter()
        if side == "PyTorch":
            forward = pytorch_forward(params, video, job["threads"])
        else:
            forward = jax_forward(params, video, job["config"])
        # The first one compiles, and warms what can be warmed.
        tokens, pooled = map(np.asarray, forward())
        np.savez(folder / f"{side}.npz", tokens=tokens, pooled=pooled)
        return forward, {"preparation_seconds": time.perf_counter() - start}

    serve(prepare)
    return 0


def jax_forward(params: Params, video: np.ndarray, config: dict[str, Any]) -> Forward:
    """This library's forward, compiled."""
    import jax
    from flax import traverse_util

    from internvideo_jax import models
    from internvideo_jax.config import from_dict
    from internvideo_jax.models.video_vit import VideoViT, VideoViTConfig

    module = VideoViT(from_dict(VideoViTConfig, config))
    on_device = {path: jax.device_put(np.array(array)) for path, array in params.items()}
    variables = {"params": traverse_util.unflatten_dict(on_device, sep="/")}
    clips = jax.device_put(video)
    encode = jax.jit(lambda variables, clips: models.encode(module, variables, clips))

    def forward() -> tuple[Any, Any]:
        output = jax.block_until_ready(encode(variables, clips))
        return output.tokens, output.pooled

    return forward


def pytorch_forward(params: Params, video: np.ndarray, threads: int) -> Forward:
    """PyTorch's forward, in inference mode."""
    import torch

    from internvideo_jax.launch.benchmarks.torch_video_vit import TorchVideoViT

    torch.set_num_threads(threads)
    model = TorchVideoViT(params).eval()
    clips = torch.from_numpy(video)

    @torch.inference_mode()
    def forward() -> tuple[Any, Any]:
        return model(clips)

    return forward


if __name__ == "__main__":
    raise SystemExit(main())
