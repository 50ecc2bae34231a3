"""The kinds of training: a config and a `training.stage.Stage` for each."""

from collections.abc import Mapping
from typing import Any

from internvideo_jax.config import from_dict, nearest_name
from internvideo_jax.training.stage import Stage
from internvideo_jax.training.stages.alignment import AlignmentStage
from internvideo_jax.training.stages.classify import ClassifyConfig, ClassifyStage
from internvideo_jax.training.stages.contrastive import ContrastiveStage
from internvideo_jax.training.stages.contrastive_config import ContrastiveConfig
from internvideo_jax.training.stages.cross_modal import CrossModalStage
from internvideo_jax.training.stages.cross_modal_config import CrossModalConfig
from internvideo_jax.training.stages.distill import DistillConfig
from internvideo_jax.training.stages.pretrain import PretrainConfig

STAGES: dict[str, tuple[type, type]] = {
    "pretrain": (PretrainConfig, AlignmentStage),
    "distill": (DistillConfig, AlignmentStage),
    "classify": (ClassifyConfig, ClassifyStage),
    "cross_modal": (CrossModalConfig, CrossModalStage),
    "contrastive": (ContrastiveConfig, ContrastiveStage),
}


def make_stage(config: Mapping[str, Any], where: str = "config.stage") -> Stage:
    """The stage of a config with a `kind` and the fields of that kind's dataclass.

    Raises:
      ValueError: an unknown kind, or wrong fields.
    """
    fields = dict(config.items())
    kind = fields.pop("kind", None)
    if kind not in STAGES:
        raise ValueError(
            f"{where}.kind: expected one of {', '.join(STAGES)}, found {kind!r}"
            + nearest_name(str(kind), STAGES)
        )
    config_cls, stage_cls = STAGES[kind]
    stage: Stage = stage_cls(from_dict(config_cls, fields, where))
    return stage
