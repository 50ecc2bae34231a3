"""Stage 2: a video tower of stage 1 learns what texts, and sounds, say of clips.

`configs/stage2/pretrain.py:NAME` with NAME one of
  1b          clips and images with texts
  1b_teacher  likewise, the video tower goes on following InternVL-6B; upstream has the loss, but
              no recipe with it
  6b          as 1b, the larger model
  6b_teacher  as 1b_teacher
  6b_audio    clips together with their sound as well; BEATs stays as it is
  demo        a model of minutes, for the demo's world (configs/demo/stage2.py)
Set the models to start from, the vocabulary and the data (docs/stage2.md):

    --config.stage.initial_vision=DIR --config.stage.initial_text=DIR
    --config.stage.initial_audio=DIR (6b_audio)
    --config.stage.teacher_path=DIR (1b_teacher, 6b_teacher)
    --config.data.vocabulary=vocab.txt --config.data.mixture="(...)"

Source: `scripts/pretraining/stage2` of upstream `InternVideo2/multi_modality`.
"""

import dataclasses

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import stage2 as demo
from internvideo_jax.configs.stage1.common import choose, in_bfloat16, run_config
from internvideo_jax.configs.stage2 import common
from internvideo_jax.models.stage2 import (
    Stage2Config,
    internvideo2_stage2_1b,
    internvideo2_stage2_6b,
)
from internvideo_jax.models.teacher import internvl_teacher
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.optimizer import PartConfig
from internvideo_jax.training.stages.cross_modal_config import CrossModalConfig, LossWeights


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """A released recipe.

    Attributes:
      model: the towers.
      gpus: of upstream's run, each of which holds 64 clips.
      epochs: passes over the data.
      max_text_length: tokens of a text.
      with_sound: whether clips come with their sound.
      with_teacher: whether the video tower is aligned with stage 1's image teacher.
    """

    model: Stage2Config
    gpus: int
    epochs: int
    max_text_length: int
    with_sound: bool = False
    with_teacher: bool = False


_1B = _Recipe(internvideo2_stage2_1b(), 64, 10, 32)
_6B = _Recipe(internvideo2_stage2_6b(audio=False), 256, 5, 40)
RECIPES = {
    "1b": _1B,
    "1b_teacher": dataclasses.replace(_1B, with_teacher=True),
    "6b": _6B,
    "6b_teacher": dataclasses.replace(_6B, with_teacher=True),
    "6b_audio": dataclasses.replace(_6B, model=internvideo2_stage2_6b(), with_sound=True),
    "demo": None,
}
_CLIPS_PER_GPU = 64


def get_config(name: str = "1b") -> ConfigDict:
    """The config of a recipe.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    recipe = choose(RECIPES, name, "stage2/pretrain.py")
    return demo.get_config() if recipe is None else _released(recipe)


def _released(recipe: _Recipe) -> ConfigDict:
    sound, alignment = float(recipe.with_sound), float(recipe.with_teacher)
    stage = CrossModalConfig(
        common.in_bfloat16(recipe.model),
        weights=LossWeights(
            avtc=sound, avtm=sound, avmlm=sound, uta_middle=alignment, uta_final=alignment
        ),
        teacher=in_bfloat16(internvl_teacher()) if recipe.with_teacher else None,
        max_text_length=recipe.max_text_length,
        match_group=_CLIPS_PER_GPU,
        # Upstream's gathering passes the gradient of a GPU's own part on.
        contrastive_gradient_scale=1 / recipe.gpus,
    )
    frozen = (PartConfig("audio/.*", frozen=True),) if recipe.with_sound else ()
    train = TrainConfig(
        batch_size=recipe.gpus * _CLIPS_PER_GPU,
        epochs=recipe.epochs,
        warmup_epochs=1,
        optimizer=common.adamw(5e-5, frozen),
        frozen_dtype="bfloat16",
    )
    return run_config("cross_modal", stage, train, common.data(stage), None)
