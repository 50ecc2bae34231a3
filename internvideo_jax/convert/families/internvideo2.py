"""Conversion tables of the InternVideo2 video ViT and of the stage-1 models built on it.

Key names are those of upstream `InternVideo2/single_modality/models/`.
"""

from internvideo_jax.convert.engine.rules import ONES, ZEROS, Ignore, Rule, Table, nested, rule
from internvideo_jax.convert.engine.transforms import (
    CONV3D,
    IDENTITY,
    LINEAR,
    LINEAR_FROM_HEADS,
    SPLIT_HEADS,
    Transform,
)


def layer(
    target: str, keys: str, kernel: Transform = LINEAR, bias: Transform = IDENTITY
) -> tuple[Rule, Rule]:
    """Kernel and bias of a linear layer."""
    return (
        rule(f"{target}/kernel", f"{keys}.weight", kernel),
        rule(f"{target}/bias", f"{keys}.bias", bias),
    )


def norm(target: str, keys: str) -> tuple[Rule, Rule]:
    """Scale and bias of a norm."""
    return rule(f"{target}/scale", f"{keys}.weight"), rule(f"{target}/bias", f"{keys}.bias")


BLOCKS = (
    rule("blocks/norm1/scale", "blocks.{layer}.norm1.weight"),
    rule("blocks/norm2/scale", "blocks.{layer}.norm2.weight"),
    *layer("blocks/attn/qkv", "blocks.{layer}.attn.qkv", LINEAR, SPLIT_HEADS),
    rule("blocks/attn/q_norm/scale", "blocks.{layer}.attn.q_norm.weight", SPLIT_HEADS),
    rule("blocks/attn/k_norm/scale", "blocks.{layer}.attn.k_norm.weight", SPLIT_HEADS),
    *layer("blocks/attn/proj", "blocks.{layer}.attn.proj", LINEAR_FROM_HEADS),
    *layer("blocks/mlp/fc1", "blocks.{layer}.mlp.fc1"),
    *layer("blocks/mlp/fc2", "blocks.{layer}.mlp.fc2"),
)


def _pooler_projection(name: str) -> tuple[Rule, ...]:
    return (
        *norm(f"pooler/norm_{name}", f"clip_projector.norm1_{name}"),
        rule(f"pooler/{name}/kernel", f"clip_projector.cross_attn.{name}.weight", LINEAR),
        # Upstream keeps these biases as parameters of their own.
        rule(f"pooler/{name}/bias", f"clip_projector.cross_attn.{name}_bias", SPLIT_HEADS),
    )


ENCODER = (
    *layer("patch_embed", "patch_embed.proj", CONV3D),
    *(rule(name, name) for name in ("cls_token", "pos_embed")),
    *(rule(f"pos_embed_{part}", f"pos_embed_{part}") for part in ("spatial", "temporal", "cls")),
    *BLOCKS,
    rule("blocks/ls1/gamma", "blocks.{layer}.ls1.gamma"),
    rule("blocks/ls2/gamma", "blocks.{layer}.ls2.gamma"),
    *_pooler_projection("q"),
    *_pooler_projection("k"),
    *_pooler_projection("v"),
    *layer("pooler/proj", "clip_projector.cross_attn.proj", LINEAR_FROM_HEADS),
)

# Stage-1 files hold no `fc_norm`; the released loaders let it start as the identity.
HEAD = (
    rule("fc_norm/scale", "fc_norm.weight", initial=ONES),
    rule("fc_norm/bias", "fc_norm.bias", initial=ZEROS),
    *norm("extra_norm", "extra_mlp.0"),
    *layer("extra_mlp/fc1", "extra_mlp.1.fc1"),
    *layer("extra_mlp/fc2", "extra_mlp.1.fc2"),
    *layer("down", "down.0"),
    *norm("down_norm", "down_norm"),
    Rule("batch_stats/down_norm/mean", ("down_norm.running_mean",)),
    Rule("batch_stats/down_norm/var", ("down_norm.running_var",)),
    *layer("head", "head"),
)


def decoder(target: str, keys: str) -> tuple[Rule, ...]:
    """A decoder of either class: linear, or of two layers; a config has the targets of one."""
    return (
        *layer(f"{target}/head", f"{keys}.head"),
        *layer(f"{target}/fc1", f"{keys}.head.0"),
        *layer(f"{target}/fc2", f"{keys}.head.2"),
        *norm(f"{target}/norm", f"{keys}.norm"),
    )


def _positions(prefix: str) -> tuple[Rule, ...]:
    names = ("pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_cls")
    return tuple(rule(prefix + name, prefix + name) for name in names)


CLIP_DECODERS = (
    *_positions("clip_"),
    *decoder("clip_decoder", "clip_decoder.{layer}"),
    *decoder("final_clip_decoder", "final_clip_decoder"),
)

MAE_DECODERS = (*_positions("mae_"), *decoder("mae_decoder", "mae_decoder.{layer}"))

UNUSED_DECODERS = (
    Ignore(
        r"(clip_decoder|mae_decoder|final_clip_decoder)\..*",
        "stage-1 decoders, unused downstream",
    ),
    Ignore(
        r"(clip|mae)_pos_embed(_spatial|_temporal|_cls)?",
        "position tables of the stage-1 decoders, unused downstream",
    ),
)

UNUSED_HEAD = (
    Ignore(r"(fc_norm|extra_mlp|down|down_norm|head)\..*", "classifier head, left out on request"),
)

# Upstream's classes hold the vision tower under `vision_encoder.`, whose prefix is already gone.
STAGE2 = (
    Ignore(
        r"(text_encoder|vision_proj|text_proj|itm_head)\..*|temp",
        "stage-2 text tower and matching heads",
    ),
    Ignore(
        r"(audio_encoder|audio_proj|av_concat_(vision|audio)_proj|av_fusion|avtm_head)\..*",
        "stage-2 audio tower and its heads",
    ),
    Ignore(r"(clip_)?img_pos_embed", "stage-2 position tables for images"),
)

BATCH_NORM_COUNTER = Ignore(r"down_norm\.num_batches_tracked", "batch-norm step counter")

VIDEO_VIT = Table(ENCODER, (*UNUSED_DECODERS, *UNUSED_HEAD, *STAGE2))

VIDEO_CLASSIFIER = Table(
    (*nested(ENCODER, "encoder"), *HEAD), (*UNUSED_DECODERS, *STAGE2, BATCH_NORM_COUNTER)
)

STAGE1_STUDENT = Table((*nested(ENCODER, "encoder"), *CLIP_DECODERS, *MAE_DECODERS))

DISTILL_STUDENT = Table((*nested(ENCODER, "encoder"), *CLIP_DECODERS))
