"""Analytic FLOPs of the models: their matrix products, from the config alone.

A multiply-add counts as two. Norms, softmax, GELUs and position tables are left out, as is usual;
so is what remat computes again. The figures are exact for matrix products: a test compares them
with those of the traced models.
"""

import math
from typing import Any

from internvideo_jax.models.stage1 import DistillStudentConfig, Stage1StudentConfig
from internvideo_jax.models.teacher import TeacherConfig, VideoMAETeacherConfig
from internvideo_jax.models.video_classifier import VideoClassifierConfig
from internvideo_jax.models.video_vit import VideoViTConfig
from internvideo_jax.models.videomae import VideoMAEConfig

Flops = dict[str, int]


def forward_flops(config: Any, num_kept: int | None = None) -> Flops:
    """FLOPs of the forward pass on one clip, by part of the model.

    Args:
      config: config of one of `models.ARCHITECTURES`; its encoder's frames and image size count.
        For a per-frame teacher the clip is one of its encoder's clips, that is one image.
      num_kept: tokens that the encoder keeps, the class token included; all by default.

    Returns:
      FLOPs by part; their sum is the whole model's.

    Raises:
      TypeError: not a config of one of the models.
    """
    if isinstance(config, VideoViTConfig):
        return _video_vit(config, num_kept)
    if isinstance(config, VideoMAEConfig):
        return _videomae(config, num_kept)
    if isinstance(config, VideoClassifierConfig):
        return _video_vit(config.encoder, num_kept) | {"head": _classifier_head(config)}
    if isinstance(config, Stage1StudentConfig | DistillStudentConfig):
        return _video_vit(config.encoder, num_kept) | _decoders(config, num_kept)
    if isinstance(config, TeacherConfig | VideoMAETeacherConfig):
        return forward_flops(config.encoder, num_kept)
    raise TypeError(f"expected the config of a model, found {type(config).__name__}")


def gradient_flops(forward: int) -> int:
    """FLOPs of a forward pass with its gradients: the backward pass has two products for each."""
    return 3 * forward


def _video_vit(config: VideoViTConfig, num_kept: int | None) -> Flops:
    tokens = num_kept or config.num_tokens
    width = config.width
    query = 2 * width * width
    key_value = 2 * 2 * tokens * width * width
    attention = 2 * 2 * tokens * width
    return {
        "patch_embed": _patch_embed(config, 3),
        "blocks": config.depth * _block(tokens, width, config.mlp_dim),
        "pooler": query + key_value + attention + 2 * width * config.pooled_dim,
    }


def _videomae(config: VideoMAEConfig, num_kept: int | None) -> Flops:
    tokens = num_kept or math.prod(config.grid)
    block = _block(tokens, config.width, config.mlp_dim)
    if config.as_released:
        # Each token's heads attend to one another.
        block += 2 * 2 * tokens * config.width * (config.num_heads - tokens)
    return {"patch_embed": _patch_embed(config, 3), "blocks": config.depth * block}


def _patch_embed(config: VideoViTConfig | VideoMAEConfig, channels: int) -> int:
    """All patches are embedded, also those that are not kept."""
    patch = config.tubelet_size * config.patch_size**2 * channels
    return 2 * math.prod(config.grid) * patch * config.width


def _block(tokens: int, width: int, mlp_dim: int) -> int:
    projections = 2 * tokens * width * (3 * width + width)
    attention = 2 * 2 * tokens * tokens * width
    mlp = 2 * 2 * tokens * width * mlp_dim
    return projections + attention + mlp


def _classifier_head(config: VideoClassifierConfig) -> int:
    encoder = config.encoder
    pooled = encoder.pooled_dim
    features, extra = pooled, 0
    if config.head == "attentive":
        extra = 2 * 2 * pooled * 4 * pooled
    elif config.head == "concat":
        rows, row_width = 2, encoder.width
        if config.merge_method.startswith("cls_avgN"):
            rows, row_width = 1 + encoder.grid[0], pooled
            extra = 2 * rows * encoder.width * pooled
        features = rows * row_width + (pooled if config.merge_method.endswith("_proj") else 0)
    return extra + 2 * features * config.num_classes


def _decoders(config: Stage1StudentConfig | DistillStudentConfig, num_kept: int | None) -> Flops:
    encoder = config.encoder
    tokens = num_kept or encoder.num_tokens
    kind = config.decoder if isinstance(config, DistillStudentConfig) else "linear"

    def decoder(kind: str, rows: int, width: int, target: int) -> int:
        hidden = width * width if kind == "mlp" else 0
        return 2 * rows * (hidden + width * target)

    flops = {
        "clip_decoder": len(config.clip_layers)
        * decoder(kind, tokens, encoder.width, config.clip_target_dim),
        "final_clip_decoder": decoder(kind, 1, encoder.pooled_dim, config.clip_final_dim)
        if config.clip_final_dim
        else 0,
    }
    if isinstance(config, Stage1StudentConfig):
        flops["mae_decoder"] = len(config.mae_layers) * decoder(
            "mlp", tokens - 1, encoder.width, config.mae_target_dim
        )
    return flops
