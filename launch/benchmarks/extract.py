"""Features of one clip, from the start of the program, beside a bare forward of the same model."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.launch.benchmarks.runner import (
    Row,
    Sample,
    interleave,
    run_command,
    run_function,
    say,
)

SECONDS, FPS = 5, 25


def benchmark_extract(*, repeats: int) -> list[Row]:
    """Times one clip of 5 s with B14: the command `extract`, and `load` and `encode` in Python.

    The peer loads the same model, decodes the same frames, compiles the forward for one clip and
    runs it once. Every run is a process of its own, whose start counts, as does compiling.

    Args:
      repeats: timed runs of each side.

    Raises:
      ChildProcessError: a side failed.
    """
    with tempfile.TemporaryDirectory(prefix="internvideo-") as temporary:
        model, clip, output = (str(Path(temporary) / n) for n in ("model", "clip.mp4", "features"))
        say("extract/b14: writing a random model and a clip")
        write_model(model)
        write_clip(clip)

        def extract() -> Sample:
            sample = run_command("extract", clip, f"--model={model}", f"--output={output}")
            shutil.rmtree(output)
            return sample

        peer = "bare forward"
        sides = {
            "extract/b14": ("internvideo-jax extract", extract),
            "encode/b14": ("load and encode", lambda: run_function(encode, model, clip)),
        }
        details = {"seconds_of_video": SECONDS, "dtype": "float32"}
        return [
            interleave(
                name, {ours: run, peer: lambda: run_function(bare, model, clip)}, repeats, details
            )
            for name, (ours, run) in sides.items()
        ]


def write_model(path: str) -> None:
    """Saves a B14 encoder with random float32 weights."""
    import jax

    from internvideo_jax import saved_model
    from internvideo_jax.models import VideoViT, abstract_variables, video_vit
    from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing

    config, rng = video_vit.internvideo2_b14(), np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32),
        abstract_variables(VideoViT(config)),
    )
    video = VideoPreprocessing(image_size=config.image_size, num_frames=config.num_frames)
    saved_model.save(path, "video_vit", config, Preprocessing(video), variables)


def write_clip(path: str) -> None:
    """Renders a clip of 340x340 pixels."""
    from internvideo_jax.data.synthetic import scenes

    scene = scenes.Scene("ring", "cyan", "left", "gradient")
    scenes.write_video(path, scenes.render(scene, SECONDS * FPS, 340))


def encode(model: str, clip: str) -> None:
    """What a reader of the first page does."""
    import internvideo_jax

    internvideo_jax.load(model).encode(clip)


def bare(model: str, clip: str) -> None:
    """The least that gives the same feature."""
    import jax

    from internvideo_jax import saved_model
    from internvideo_jax.launch.benchmarks.decode import our_views
    from internvideo_jax.preprocessing import normalize

    loaded = saved_model.load(model)
    video = normalize(our_views(clip)[None], loaded.preprocessing.require_video())
    module: Any = loaded.module
    pooled = jax.jit(lambda variables, x: module.apply(variables, x).pooled)
    jax.block_until_ready(pooled(loaded.variables, video))
