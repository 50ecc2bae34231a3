"""A stage-2 run on made-up batches, in one of several processes: `program.py WORKDIR ...`."""

import argparse
from pathlib import Path

import jax
import numpy as np

from internvideo_jax.config import to_dict
from internvideo_jax.parallel.mesh import MeshConfig
from internvideo_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from internvideo_jax.training.loop import train
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.optimizer import PartConfig
from internvideo_jax.training.stage import Batches
from internvideo_jax.training.stages.cross_modal import CrossModalStage
from internvideo_jax.training.stages.cross_modal_config import CrossModalConfig, LossWeights
from tests.small_models import STAGE2

STEPS, ROWS = 20, 16
# Every third batch has sound as well, of half as many clips.
MEDIA = {"video": ROWS, "audio_video": ROWS // 2}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(15)))
CONFIG = TrainConfig(
    batch_size=ROWS,
    steps=STEPS,
    warmup_steps=2,
    optimizer=OptimizerConfig(
        lr=1e-4,
        min_lr=1e-6,
        schedule="floored_cosine",
        max_grad_norm=3.0,
        parts=(PartConfig("audio/.*", frozen=True), PartConfig("text/.*", lr_factor=0.5)),
    ),
    # Parameters that are whole compile faster.
    mesh=MeshConfig(fsdp=1),
    checkpoint=CheckpointConfig(every_steps=6),
    log_every=1,
)


def make_stage(words):
    """The stage with a file of `WORDS`."""
    return CrossModalStage(
        CrossModalConfig(
            STAGE2["audiovisual"],
            weights=LossWeights(avtc=1.0, avtm=1.0),
            video_mask=MaskConfig("random", 0.5),
            vocabulary=words,
            max_text_length=6,
            match_group=4,
        )
    )


def batches(stage):
    """This process's rows of batches that follow from the step."""

    def start(step):
        while True:
            step += 1
            media = "audio_video" if step % 3 == 0 else "video"
            rows = MEDIA[media]
            rng = np.random.default_rng(step)
            local = rows // jax.process_count()
            mine = slice(jax.process_index() * local, (jax.process_index() + 1) * local)
            # A clip that is there twice in its group.
            whole = {"clip_id": np.arange(rows, dtype=np.int32) % (rows - 1)}
            for name, x in stage.of_media(media).example_batch(rows).items():
                if x.dtype == np.uint8:
                    whole[name] = rng.integers(0, 256, x.shape, np.uint8)
                elif x.dtype == np.float32:
                    whole[name] = rng.standard_normal(x.shape, np.float32)
                elif name != "clip_id":
                    whole[name] = rng.integers(5, 20, x.shape, np.int32)
            yield {n: x[mine] for n, x in whole.items()} | {"media": np.full(local, media)}

    return start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int)
    parser.add_argument("--words")
    parser.add_argument("--cache")
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", args.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if args.processes > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{args.port}", num_processes=args.processes, process_id=args.process
        )
    stage = make_stage(args.words)
    kinds = {media: Batches(stage.of_media(media), rows) for media, rows in MEDIA.items()}
    run_config = {"train": to_dict(CONFIG)}
    data = batches(stage)
    done = train(stage, CONFIG, data, args.workdir, run_config=run_config, kinds=kinds)
    raise SystemExit(0 if done else 42)


if __name__ == "__main__":
    main()
