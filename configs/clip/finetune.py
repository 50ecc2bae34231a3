"""Fine-tuning of a CLIP model on clips and captions of one's own.

`configs/clip/finetune.py:NAME` with NAME one of b14, s14, l14, 1b, 6b, viclip_b16, viclip_l14:

    --config.stage.initial=DIR --config.data.annotations=clips.jsonl --config.data.root=DIR
    --config.data.validation_share=0.1 --config.stage.open_blocks=4

`stage.open_blocks` says how many of the last blocks of both towers are trained; unset, all are. A
LLaMA stays as it is. The command is the same on one chip and on a pod; `--config.train.batch_size`
says how many clips a step sees on all of them together.

Upstream has no such recipe: rates, lengths and batch are those of its fine-tuning of stage 2.
"""

from ml_collections import ConfigDict

from internvideo_jax.configs.clip import common
from internvideo_jax.configs.stage1.common import choose, run_config
from internvideo_jax.configs.stage2.common import adamw
from internvideo_jax.models.internvideo2_clip import (
    internvideo2_clip_1b,
    internvideo2_clip_6b,
    internvideo2_clip_b14,
    internvideo2_clip_l14,
    internvideo2_clip_s14,
)
from internvideo_jax.models.llama_text import LlamaTextConfig
from internvideo_jax.models.viclip import viclip_b16, viclip_l14
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stages.contrastive_config import ContrastiveConfig

# Models, and the releases that runs start from.
RECIPES = {
    "b14": (internvideo2_clip_b14(), "InternVideo2-CLIP-B14"),
    "s14": (internvideo2_clip_s14(), "InternVideo2-CLIP-S14"),
    "l14": (internvideo2_clip_l14(), "InternVideo2-CLIP-L14"),
    "1b": (internvideo2_clip_1b(), "InternVideo2-CLIP-1B-224p-f8"),
    "6b": (internvideo2_clip_6b(), "InternVideo2-CLIP-6B-224p-f8"),
    "viclip_b16": (viclip_b16(), "viclip-b16-internvid-10m-flt"),
    "viclip_l14": (viclip_l14(), "viclip-l14-internvid-10m-flt"),
}


def get_config(name: str = "b14") -> ConfigDict:
    """The config of a model.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    model, starts_from = choose(RECIPES, name, "clip/finetune.py")
    stage = ContrastiveConfig(
        common.in_bfloat16(model),
        text="frozen" if isinstance(model.text, LlamaTextConfig) else "trained",
        starts_from=starts_from,
    )
    train = TrainConfig(
        batch_size=32,
        epochs=5,
        warmup_epochs=1,
        optimizer=adamw(5e-6),
        frozen_dtype="bfloat16",
    )
    return run_config("contrastive", stage, train, common.data(stage), None)
