"""A tiny model of every architecture, and random state dicts of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.convert.plan import export_plan

ENCODER = models.VideoViTConfig(
    width=48,
    depth=3,
    num_heads=3,
    mlp_dim=80,
    patch_size=2,
    image_size=8,
    num_frames=4,
    pooled_dim=20,
    pooler_heads=4,
)
SEPARABLE = dataclasses.replace(
    ENCODER, position_embedding="separable", qkv_bias=True, qk_norm=False, layer_scale_init=None
)
VIDEOMAE = models.VideoMAEConfig(
    width=32, depth=2, num_heads=2, mlp_dim=48, patch_size=2, image_size=8, num_frames=4
)


def _classifier(**options: Any) -> models.VideoClassifierConfig:
    return models.VideoClassifierConfig(ENCODER, num_classes=7, **options)


CONFIGS: dict[str, tuple[str, Any]] = {
    "encoder": ("video_vit", ENCODER),
    "separable": ("video_vit", SEPARABLE),
    "linear": ("video_classifier", _classifier()),
    "attentive": ("video_classifier", _classifier(head="attentive")),
    "concat_kaiming": ("video_classifier", _classifier(head="concat", merge_method="cls_avg1")),
    "concat_bn": (
        "video_classifier",
        _classifier(head="concat", merge_method="cls_avgN", merge_norm="bn"),
    ),
    "concat_ln": (
        "video_classifier",
        _classifier(head="concat", merge_method="cls_avgN_proj", merge_norm="ln"),
    ),
    "pretrain": (
        "stage1_student",
        models.Stage1StudentConfig(
            ENCODER, clip_layers=(1, 2), mae_layers=(2,), clip_target_dim=24, mae_target_dim=28
        ),
    ),
    "pretrain_without_final": (
        "stage1_student",
        models.Stage1StudentConfig(
            SEPARABLE, clip_layers=(0, 2), mae_layers=(2,), clip_target_dim=24, clip_final_dim=0
        ),
    ),
    "distill": ("distill_student", models.DistillStudentConfig(ENCODER, clip_layers=(1, 2))),
    "distill_linear": (
        "distill_student",
        models.DistillStudentConfig(ENCODER, clip_layers=(2,), decoder="linear"),
    ),
    "teacher": ("teacher", models.TeacherConfig(ENCODER, layers=(1, 2))),
    "videomae": ("videomae", VIDEOMAE),
    "videomae_teacher": (
        "videomae_teacher",
        models.VideoMAETeacherConfig(
            dataclasses.replace(VIDEOMAE, learned_position=True, layer_scale_init=0.1), layers=(1,)
        ),
    ),
}

# What tensors do not show of these models; see `inference.infer_config`.
OPTIONS = {"num_heads": 3, "attn_pool_num_heads": 4, "num_frames": 4}


@pytest.fixture(params=CONFIGS)
def tiny(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """Architecture and config of each tiny model in turn."""
    return CONFIGS[request.param]


@pytest.fixture
def configs() -> dict[str, tuple[str, Any]]:
    """Architecture and config of the tiny models by name."""
    return CONFIGS


@pytest.fixture
def options() -> dict[str, Any]:
    """Constructor options that the tensors of the tiny video ViTs do not show."""
    return dict(OPTIONS)


@pytest.fixture
def make_state() -> Callable[..., dict[str, np.ndarray]]:
    """Makes the state dict of a model with random values: `make_state(architecture, config)`."""

    def make(architecture: str, config: Any, prefix: str = "", dtype: Any = np.float32) -> Any:
        rng = np.random.default_rng(0)
        plan = export_plan(architecture, config, prefix)
        return {
            plan.names[key]: rng.normal(size=shape).astype(dtype)
            for assignment in plan.loaded
            for key, shape in zip(assignment.keys, assignment.source_shapes, strict=True)
        }

    return make
