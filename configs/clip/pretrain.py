"""CLIP post-pretraining: an encoder of clips is brought together with one of texts.

`configs/clip/pretrain.py:NAME` with NAME one of
  1b, 6b               InternVideo2-CLIP: both towers stay as they are but for the pooler of clips
  1b_lora, 6b_lora     likewise, and adapters of the LLaMA with its projection are trained
  s14, b14, l14        InternVideo2-CLIP with MobileCLIP's texts: the pooler and what aligns it
  viclip_b16           ViCLIP: the video tower on a tenth of its tokens, the texts' stays
  viclip_l14           likewise, the larger model
  viclip_l14_unmasked  its second part, on all tokens
  efficient            viclip_b16 with its text tower, which gets texts without some of their words
Set the models to start from, the tokenizer's file and the data (docs/clip_training.md):

    --config.stage.initial_vision=DIR --config.stage.initial_text=DIR (1b to l14)
    --config.stage.initial=DIR (a whole model, instead of these two)
    --config.data.vocabulary=FILE (unless it lies beside the model to start from)
    --config.data.mixture="(...)"

Source: `scripts/pretraining/clip` of upstream `InternVideo2/multi_modality` with
`tasks_clip/pretrain.py`; `exp/exp_pretrain_ViCLIP` of `InternVideo1/Pretrain/ViCLIP`, its folders
`viclip_base` (which recorded 8 GPUs), `webvid_10m` and `our_0613_filtered_30p_10m`. What
`efficient` hides of texts is ours: upstream published neither model nor configs of arXiv
2310.19554.
"""

import dataclasses
from typing import Literal

from ml_collections import ConfigDict

from internvideo_jax.configs.clip import common
from internvideo_jax.configs.stage1.common import choose, run_config
from internvideo_jax.models.internvideo2_clip import (
    InternVideo2ClipConfig,
    internvideo2_clip_1b,
    internvideo2_clip_6b,
    internvideo2_clip_b14,
    internvideo2_clip_l14,
    internvideo2_clip_s14,
)
from internvideo_jax.models.llama_text import LlamaTextConfig
from internvideo_jax.models.viclip import ViClipConfig, viclip_b16, viclip_l14
from internvideo_jax.nn.lora import LoRAConfig
from internvideo_jax.training.config import OptimizerConfig, TrainConfig
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.stages.contrastive_config import ContrastiveConfig


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """A recipe.

    Attributes:
      model: the towers.
      gpus: of upstream's run.
      rows: of each of them.
      epochs: passes over the data.
      warmup: epochs of warm-up among them.
      lr: peak learning rate.
      mask_ratio: share of the tokens of clips that are dropped.
      word_drop: share of the words that are left out.
      open_blocks: see `ContrastiveConfig`.
      text: what is trained of the text tower.
    """

    model: InternVideo2ClipConfig | ViClipConfig
    gpus: int = 16
    rows: int = 256
    epochs: float = 3
    warmup: float = 0.6
    lr: float = 4e-4
    mask_ratio: float = 0.0
    word_drop: float = 0.0
    open_blocks: int | None = 0
    text: Literal["frozen", "adapters", "trained"] = "frozen"


def _with_lora(model: InternVideo2ClipConfig) -> InternVideo2ClipConfig:
    """The model with the adapters that upstream builds its LLaMA with."""
    text = model.text
    assert isinstance(text, LlamaTextConfig)
    lora = LoRAConfig(rank=16, alpha=32.0, dropout_rate=0.1)
    return dataclasses.replace(
        model, text=dataclasses.replace(text, lm=dataclasses.replace(text.lm, lora=lora))
    )


def _with_drop_path(model: ViClipConfig) -> ViClipConfig:
    return dataclasses.replace(model, vision=dataclasses.replace(model.vision, drop_path_rate=0.1))


_6B = _Recipe(internvideo2_clip_6b(), rows=128, epochs=1, warmup=0.2)
_VICLIP_B = _Recipe(
    _with_drop_path(viclip_b16()),
    gpus=8,
    rows=512,
    epochs=10,
    warmup=0.5,
    lr=2e-4,
    mask_ratio=0.9,
    open_blocks=None,
)
_VICLIP_L = dataclasses.replace(_VICLIP_B, model=_with_drop_path(viclip_l14()), gpus=64, lr=4e-4)
RECIPES = {
    "1b": _Recipe(internvideo2_clip_1b()),
    "6b": _6B,
    "1b_lora": _Recipe(_with_lora(internvideo2_clip_1b()), text="adapters"),
    "6b_lora": dataclasses.replace(_6B, model=_with_lora(internvideo2_clip_6b()), text="adapters"),
    "s14": _Recipe(internvideo2_clip_s14()),
    "b14": _Recipe(internvideo2_clip_b14()),
    "l14": _Recipe(internvideo2_clip_l14()),
    "viclip_b16": _VICLIP_B,
    "viclip_l14": _VICLIP_L,
    "viclip_l14_unmasked": dataclasses.replace(
        _VICLIP_L, rows=32, epochs=0.5, warmup=0.1, lr=4e-6, mask_ratio=0.0
    ),
    "efficient": dataclasses.replace(_VICLIP_B, word_drop=0.15, text="trained"),
}


def get_config(name: str = "1b") -> ConfigDict:
    """The config of a recipe.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    recipe: _Recipe = choose(RECIPES, name, "clip/pretrain.py")
    stage = ContrastiveConfig(
        common.in_bfloat16(recipe.model),
        mask=MaskConfig("random", recipe.mask_ratio),
        word_drop=recipe.word_drop,
        open_blocks=recipe.open_blocks,
        text=recipe.text,
        # Upstream's gathering passes the gradient of a GPU's own part on.
        contrastive_gradient_scale=1 / recipe.gpus,
    )
    train = TrainConfig(
        batch_size=recipe.gpus * recipe.rows,
        epochs=recipe.epochs,
        warmup_epochs=recipe.warmup,
        optimizer=OptimizerConfig(
            lr=recipe.lr,
            min_lr=0.01 * recipe.lr,
            schedule="floored_cosine",
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=0.2,
        ),
        frozen_dtype="bfloat16",
    )
    return run_config("contrastive", stage, train, common.data(stage), None)
