"""A stage-2 run on made-up batches; also a program, one of several that train together.

As a program: `cross_modal_program.py VOCABULARY WORKDIR... [--kill_at STEP]`.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import to_dict
from internvideo_jax.parallel.mesh import MeshConfig
from internvideo_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from internvideo_jax.training.loop import train
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.optimizer import PartConfig
from internvideo_jax.training.stages.cross_modal import CrossModalStage
from internvideo_jax.training.stages.cross_modal_config import CrossModalConfig, LossWeights
from tests.processes import join_system
from tests.small_models import STAGE2, noise_like
from tests.training.toy_stage import slowed

STEPS, ROWS = 20, 16
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(15)))
CONFIG = TrainConfig(
    batch_size=ROWS,
    steps=STEPS,
    warmup_steps=2,
    optimizer=OptimizerConfig(
        lr=1e-3,
        min_lr=1e-5,
        schedule="floored_cosine",
        max_grad_norm=3.0,
        # Fewer trained parameters compile faster.
        parts=(
            PartConfig("text/fusion_blocks/.*", lr_factor=0.5),
            PartConfig("(text|audio)/.*", frozen=True),
        ),
    ),
    mesh=MeshConfig(),
    checkpoint=CheckpointConfig(every_steps=6),
    log_every=1,
)


# Dropout is left out: it compiles slowly.
MODEL = dataclasses.replace(
    STAGE2["audiovisual"],
    text=dataclasses.replace(
        STAGE2["audiovisual"].text, dropout_rate=0.0, attention_dropout_rate=0.0
    ),
)


class Stage(CrossModalStage):
    """A stage whose parameters start as draws of the host, so that there are none to compile."""

    def init(self, key):
        return jax.tree.map(jnp.zeros_like, jax.eval_shape(super().init, key))

    def load_initial(self, variables):
        def placed(drawn, variable):
            whole = np.asarray(drawn)
            return jax.make_array_from_callback(
                whole.shape, variable.sharding, lambda index: whole[index]
            )

        drawn = noise_like(variables, 0, 0.3)
        drawn["params"]["temperature"] = np.float32(MODEL.initial_temperature)
        return jax.tree.map(placed, drawn, variables)


def make_stage(vocabulary: Path) -> Stage:
    """All towers; one loss of each kind. Negatives come from the whole batch, of all processes."""
    config = CrossModalConfig(
        MODEL,
        weights=LossWeights(vtc=0.0, vtm=0.0, mlm=0.0, avtc=1.0, avtm=1.0, avmlm=1.0),
        video_mask=MaskConfig("random", 0.5),
        vocabulary=str(vocabulary),
        max_text_length=6,
        match_group=ROWS,
    )
    return Stage(config, "audio_video")


def batches(stage):
    """This process's rows of batches that follow from the step."""
    draws = {
        "uint8": lambda rng, shape: rng.integers(0, 256, shape, np.uint8),
        "int32": lambda rng, shape: rng.integers(5, len(WORDS), shape, np.int32),
        "float32": lambda rng, shape: rng.standard_normal(shape, np.float32),
    }
    local = ROWS // jax.process_count()
    mine = slice(jax.process_index() * local, (jax.process_index() + 1) * local)

    def start(step):
        while True:
            rng = np.random.default_rng(step)
            fields = stage.example_batch(ROWS).items()
            whole = {name: draws[x.dtype.name](rng, x.shape) for name, x in fields}
            # The last clip is the first one once more.
            whole["clip_id"] = np.arange(ROWS, dtype=np.int32) % (ROWS - 1)
            yield {name: x[mine] for name, x in whole.items()}
            step += 1

    return start


def run(vocabulary, workdir, kill_at):
    """Trains to the end, or up to the step `kill_at`, before which the process is killed."""
    stage = make_stage(vocabulary)
    data = slowed(batches(stage), 0.0, kill_at)
    assert train(stage, CONFIG, data, workdir, run_config={"train": to_dict(CONFIG)})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("workdir", type=Path, nargs="+")
    parser.add_argument("--kill_at", type=int, help="step of the last run")
    args = parser.parse_args()
    join_system()
    for workdir in args.workdir:
        run(args.vocabulary, workdir, args.kill_at if workdir == args.workdir[-1] else None)


if __name__ == "__main__":
    main()
