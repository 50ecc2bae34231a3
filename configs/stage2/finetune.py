"""Fine-tuning of a stage-2 model for retrieval, on clips and captions of one's own.

`configs/stage2/finetune.py:1b` or `:6b`, of the whole model or of its last blocks, or
`:demo[,SIZE]`, of the model that `internvideo-jax demo` trains (SIZE full or fast):

    --config.stage.initial=DIR --config.data.annotations=clips.jsonl --config.data.root=DIR
    --config.stage.open_blocks=4 --config.data.validation_share=0.1

The command is the same on one chip and on a pod; `--config.train.batch_size` says how many clips a
step sees on all of them together. Source: `scripts/finetuning/stage2` of upstream
`InternVideo2/multi_modality`.
"""

import dataclasses

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import stage2 as demo
from internvideo_jax.configs.stage1.common import as_config, choose, run_config
from internvideo_jax.configs.stage2 import common
from internvideo_jax.models.stage2 import internvideo2_stage2_1b, internvideo2_stage2_6b
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stages.cross_modal_config import CrossModalConfig, LossWeights

# Models, tokens of a text, and the releases that runs start from.
RECIPES = {
    "1b": (internvideo2_stage2_1b(), 32, "internvideo2-stage2-1b"),
    "6b": (internvideo2_stage2_6b(audio=False), 40, "internvideo2-stage2-6b"),
}
_GPUS, _CLIPS_PER_GPU = 4, 8
# The demo's model is small, and so are the lists that it is tried with.
_DEMO_LR = 3e-4


def get_config(name: str = "1b") -> ConfigDict:
    """The config of a size.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    kind, _, size = name.partition(",")
    if kind == "demo":
        return _demo(size or "full")
    model, max_text_length, starts_from = choose(
        RECIPES, name, "stage2/finetune.py", others=("demo",)
    )
    stage = CrossModalConfig(
        common.in_bfloat16(model),
        weights=LossWeights(mlm=0.0),
        max_text_length=max_text_length,
        match_group=_CLIPS_PER_GPU,
        contrastive_gradient_scale=1 / _GPUS,
        starts_from=starts_from,
    )
    train = dataclasses.replace(_train(5e-6), frozen_dtype="bfloat16")
    return run_config("cross_modal", stage, train, common.data(stage), None)


def _demo(size: str) -> ConfigDict:
    """Clips without their sound; all of them and all of a clip, as in the demo."""
    config = demo.get_config(size)
    config.stage.weights.update(avtc=0.0, atc=0.0, mlm=0.0)
    config.stage.match_group = _CLIPS_PER_GPU
    config.stage.starts_from = "the demo's model of stage 2"
    config.data.media = "video"
    config.train = as_config(_train(_DEMO_LR))
    return config


def _train(lr: float) -> TrainConfig:
    return TrainConfig(
        batch_size=_GPUS * _CLIPS_PER_GPU,
        epochs=5,
        warmup_epochs=1,
        optimizer=common.adamw(lr),
    )
