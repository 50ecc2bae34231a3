"""Embeddings of clips in files beside the bare encoder on frames that are decoded already.

JAX is imported late, in the processes that are timed.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax.environment import usable_cpus
from internvideo_jax.launch.benchmarks import rerank
from internvideo_jax.launch.benchmarks.figures import Figure, Figures
from internvideo_jax.launch.benchmarks.forwards import Forward, race
from internvideo_jax.launch.benchmarks.runner import OURS, run_function, say

if TYPE_CHECKING:
    from internvideo_jax.models.stage2 import Stage2Config

PEER = "bare encoder"
NUM_CLIPS, NUM_FRAMES, SECONDS, FPS, SIDE = 8, 8, 3, 25, 340
# Of the bare encoder's time, and in seconds.
MAX_SHARE, MAX_START = 1.05, 40.0
# Of the largest value: a batch as a whole rounds otherwise than row by row.
TOLERANCE = 1e-4


def benchmark_encode_video(*, repeats: int) -> Figures:
    """Times `encode_video` of 8 files by a B14, and the start of a program that embeds one.

    The peer is the compiled encoder on the same frames, decoded and normalised, all 8 clips at
    once; both are warm. The start is that of a new process that loads the model and embeds a clip,
    where the programs have been compiled by an earlier one.

    Args:
      repeats: timed runs of each, after a first one that is not counted.

    Raises:
      ChildProcessError: a side failed.
      ValueError: the two sides' embeddings disagree.
    """
    name = "encode_video/b14"
    with tempfile.TemporaryDirectory(prefix="internvideo-") as temporary:
        folder = Path(temporary)
        model, clips = str(folder / "model"), [str(folder / f"{i}.mp4") for i in range(NUM_CLIPS)]
        say(f"{name}: writing a random model and {NUM_CLIPS} clips")
        write_model(model)
        write_clips(clips)
        row = race(
            name,
            (OURS, PEER),
            prepare,
            model,
            clips,
            threads=usable_cpus(),
            repeats=repeats,
            details={"clips": NUM_CLIPS, "seconds_of_video": SECONDS},
            tolerance=TOLERANCE,
        )
        compiled = str(folder / "compiled")
        starts = [run_function(embed_first, model, clips[0], compiled) for _ in range(repeats + 1)]
    sides = (row.samples, row.peer_samples)
    ours, theirs = (median(s.seconds for s in side) for side in sides)
    our_cpu, their_cpu = (median(s.cpu_seconds for s in side) for side in sides)
    figures = [
        Figure("warm encode_video", ours, "s"),
        Figure(PEER, theirs, "s"),
        Figure("share", ours / theirs, at_most=MAX_SHARE),
        # The clock says little where other work goes on.
        Figure("share of CPU time", our_cpu / their_cpu),
        Figure("load and one clip", median(s.seconds for s in starts[1:]), "s", at_most=MAX_START),
        Figure("CPU time of that", median(s.cpu_seconds for s in starts[1:]), "s"),
    ]
    details = {
        "cpu_seconds": our_cpu,
        "peer_cpu_seconds": their_cpu,
        "seconds_without_compiled_programs": starts[0].seconds,
    }
    return Figures(name, figures, row.details | details)


def model_config() -> "Stage2Config":
    """A stage-2 model whose B14 takes 8 frames."""
    config = rerank.model_config()
    encoder = dataclasses.replace(config.vision.encoder, num_frames=NUM_FRAMES)
    vision = dataclasses.replace(config.vision, encoder=encoder)
    return dataclasses.replace(config, vision=vision)


def write_model(path: str) -> None:
    """Saves the model with random float32 weights, without a vocabulary."""
    import jax

    from internvideo_jax import saved_model
    from internvideo_jax.models import abstract_variables
    from internvideo_jax.models.stage2 import Stage2
    from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing

    config, rng = model_config(), np.random.default_rng(0)
    encoder = config.vision.encoder
    variables = jax.tree.map(
        lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32),
        abstract_variables(Stage2(config)),
    )
    video = VideoPreprocessing(
        image_size=encoder.image_size, num_frames=encoder.num_frames, resize="bicubic_square"
    )
    saved_model.save(path, "stage2", config, Preprocessing(video), variables)


def write_clips(paths: Sequence[str]) -> None:
    """Renders different clips of 3 s with 340x340 pixels."""
    from internvideo_jax.data.synthetic import scenes

    motions: tuple[scenes.Motion, ...] = ("left", "clockwise", "growing", "down")
    for number, path in enumerate(paths):
        radius = 0.1 + 0.02 * number
        scene = scenes.Scene("ring", "cyan", motions[number % 4], "gradient", radius)
        scenes.write_video(path, scenes.render(scene, SECONDS * FPS, SIDE))


def prepare(side: str, folder: str, clips: Sequence[str]) -> Forward:
    """A side's run, which returns embeddings `[N, C]` of length 1."""
    import jax

    import internvideo_jax
    from internvideo_jax.nn.normalization import l2_normalize

    model = internvideo_jax.load(folder)
    module: Any = model.module
    if side == OURS:
        return lambda: (model.encode_video(clips, batch_size=len(clips)),)

    @jax.jit
    def encode(variables: Any, video: Any) -> Any:
        return l2_normalize(module.apply(variables, video, method="encode_video").embedding)

    video = jax.device_put(model.preprocess(clips))
    return lambda: (np.asarray(encode(model.variables, video)),)


def embed_first(folder: str, clip: str, compiled: str) -> None:
    """What a program does first, with a cache of compiled programs."""
    import jax

    import internvideo_jax

    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    internvideo_jax.load(folder).encode_video(clip)
