"""The VideoMAEv2 encoder, the MAE-side teacher of stage-1 pre-training.

Released pre-training files hold it under `encoder.` beside the decoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from internvideo_jax.convert.engine.family import Shapes
from internvideo_jax.convert.engine.options import Options, expect_heads
from internvideo_jax.convert.engine.rules import Ignore, Table, nested, norm, rule
from internvideo_jax.convert.engine.shapes import MisshapenTensorError, sized
from internvideo_jax.convert.engine.transforms import JOIN_QV_BIAS
from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.convert.families import video_vit
from internvideo_jax.convert.families.internvideo2_recipes import prepare
from internvideo_jax.convert.families.video_vit import BLOCKS, PATCH_EMBED
from internvideo_jax.models import VideoMAEConfig, VideoMAETeacherConfig

ENCODER = (
    *PATCH_EMBED,
    rule("pos_embed", "pos_embed"),
    *BLOCKS,
    rule("blocks/norm1/bias", "blocks.{layer}.norm1.bias"),
    rule("blocks/norm2/bias", "blocks.{layer}.norm2.bias"),
    rule(
        "blocks/attn/qkv/bias",
        "blocks.{layer}.attn.q_bias blocks.{layer}.attn.v_bias",
        JOIN_QV_BIAS,
    ),
    rule("blocks/ls1/gamma", "blocks.{layer}.gamma_1"),
    rule("blocks/ls2/gamma", "blocks.{layer}.gamma_2"),
    *norm("norm", "norm"),
)

DECODER = (Ignore(r"(decoder|encoder_to_decoder)\..*|mask_token", "VideoMAE pre-training decoder"),)


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    if any(key.startswith(("cls_token", "clip_projector.")) for key in shapes):
        return None
    return architecture or "videomae_teacher"


def _encoder(options: Options) -> VideoMAEConfig:
    width = options.size("embed_dim")
    options.require("in_chans", 3)
    return VideoMAEConfig(
        width=width,
        depth=options.take("depth"),
        num_heads=options.size("num_heads"),
        mlp_dim=video_vit.mlp_dim(options, width),
        patch_size=options.size("patch_size", 14),
        tubelet_size=options.size("tubelet_size", 2),
        image_size=options.size("img_size", 224),
        num_frames=options.size("all_frames", 16),
        qkv_bias=options.take("qkv_bias", True),
        layer_scale_init=options.take("init_values", 0.0) or None,
        norm_epsilon=options.take("ln_eps", 1e-6),
        learned_position=options.take("pos_embed_is_parameter", False),
    )


def _teacher(options: Options) -> VideoMAETeacherConfig:
    encoder = _encoder(options)
    return VideoMAETeacherConfig(
        encoder=encoder,
        layers=video_vit.layers(options, encoder.depth, "mae", "", 4, 1),
        normalization=options.take("mae_norm_type", "l2"),
    )


def _to_options(config: Any) -> dict[str, Any]:
    encoder = video_vit.encoder_config(config)
    options = {
        "num_heads": encoder.num_heads,
        "img_size": encoder.image_size,
        "init_values": encoder.layer_scale_init or 0.0,
        "all_frames": encoder.num_frames,
        "ln_eps": encoder.norm_epsilon,
    }
    if isinstance(config, VideoMAETeacherConfig):
        options |= video_vit.listed("mae", "", config.layers, config.normalization)
    return options


def _infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    options = video_vit.sizes(shapes) | {
        "qkv_bias": video_vit.in_blocks(shapes, "attn.q_bias") is not None,
        "pos_embed_is_parameter": "pos_embed" in shapes,
    }
    if video_vit.in_blocks(shapes, "gamma_1") is None:
        options["init_values"] = 0.0
    elif not stored.get("init_values"):
        # Any initial value but this class's default, which leaves layer scale out.
        options["init_values"] = 0.1
    problems = []
    if "pos_embed" in shapes:
        try:
            rows = sized(shapes, "pos_embed", 3)[1]
            t, side, _ = video_vit.table_grid(rows, 0, options, "all_frames", given, stored)
            options["all_frames"] = t * options["tubelet_size"]
            options["img_size"] = side * options["patch_size"]
        except MisshapenTensorError:
            raise
        except ValueError as error:
            problems.append(str(error))
    heads = {"num_heads": video_vit.HEADS.get(options["embed_dim"])}
    known = {**stored, **given}
    expect_heads(heads, options["embed_dim"], video_vit.HEADS, known, problems)
    return options, heads


def _run_teacher(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    values = {}
    for name, as_released in (("correct", False), ("as_released", True)):
        encoder = dataclasses.replace(module.config.encoder, as_released=as_released)
        variant = type(module)(dataclasses.replace(module.config, encoder=encoder))
        values[f"norm_mae/{name}"] = variant.apply(variables, inputs["video"], inputs.get("kept"))
    return values


FAMILY = video_vit.family(
    name="videomae",
    recognize=_recognize,
    kinds={"videomae": _encoder, "videomae_teacher": _teacher},
    tables={
        "videomae": Table(ENCODER, DECODER),
        "videomae_teacher": Table(nested(ENCODER, "encoder"), DECODER),
    },
    infer=_infer,
    to_options=_to_options,
    recipes={
        "videomae_teacher": Recipe(
            ("video",), _run_teacher, prepare, outputs=("norm_mae/as_released",)
        )
    },
)
