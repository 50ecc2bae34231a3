"""The InternVideo2 video ViT and the stage-1 models built on it.

Key names and constructor options are those of upstream `InternVideo2/single_modality/models/`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from internvideo_jax.convert.engine.family import Shapes
from internvideo_jax.convert.engine.options import Options, expect_heads
from internvideo_jax.convert.engine.rules import (
    ONES,
    ZEROS,
    Ignore,
    InitialValue,
    Rule,
    Table,
    layer,
    nested,
    norm,
    rule,
)
from internvideo_jax.convert.engine.shapes import MisshapenTensorError, count_layers, sized
from internvideo_jax.convert.engine.transforms import LINEAR, LINEAR_FROM_HEADS, RESHAPE, Shape
from internvideo_jax.convert.families import video_vit
from internvideo_jax.convert.families.internvideo2_recipes import RECIPES
from internvideo_jax.convert.families.video_vit import BLOCKS, PATCH_EMBED
from internvideo_jax.models import (
    DistillStudentConfig,
    Stage1StudentConfig,
    TeacherConfig,
    VideoClassifierConfig,
    VideoViTConfig,
)
from internvideo_jax.models.video_vit import ImagePositions
from internvideo_jax.nn.position_embedding import Grid


def _new_head(shape: Shape) -> np.ndarray:
    # Upstream starts heads from N(0, 0.02) scaled by `init_scale`, 0.001.
    return np.random.default_rng(0).normal(0, 2e-5, shape).astype(np.float32)


NEW_HEAD = InitialValue("new head, untrained", _new_head)


def _positions(prefix: str) -> tuple[Rule, ...]:
    names = (
        *("pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_cls"),
        "img_pos_embed",
    )
    return tuple(rule(prefix + name, prefix + name) for name in names)


def _pooler_projection(name: str) -> tuple[Rule, ...]:
    return (
        *norm(f"pooler/norm_{name}", f"clip_projector.norm1_{name}"),
        rule(f"pooler/{name}/kernel", f"clip_projector.cross_attn.{name}.weight", LINEAR),
        # Upstream keeps these biases as parameters of their own.
        rule(f"pooler/{name}/bias", f"clip_projector.cross_attn.{name}_bias", RESHAPE),
    )


ENCODER = (
    *PATCH_EMBED,
    rule("cls_token", "cls_token"),
    *_positions(""),
    *BLOCKS,
    rule("blocks/attn/qkv/bias", "blocks.{layer}.attn.qkv.bias", RESHAPE),
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
    Rule(("batch_stats/down_norm/mean",), ("down_norm.running_mean",)),
    Rule(("batch_stats/down_norm/var",), ("down_norm.running_var",)),
    rule("head/kernel", "head.weight", LINEAR, fresh=NEW_HEAD),
    rule("head/bias", "head.bias", fresh=ZEROS),
)


def decoder(target: str, keys: str) -> tuple[Rule, ...]:
    """A decoder of either class: linear, or of two layers; a config has the targets of one."""
    return (
        *layer(f"{target}/head", f"{keys}.head"),
        *layer(f"{target}/fc1", f"{keys}.head.0"),
        *layer(f"{target}/fc2", f"{keys}.head.2"),
        *norm(f"{target}/norm", f"{keys}.norm"),
    )


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

_UNUSED = (*UNUSED_DECODERS, *STAGE2)

TABLES = {
    "video_vit": Table(ENCODER, (*_UNUSED, *UNUSED_HEAD)),
    "video_classifier": Table((*nested(ENCODER, "encoder"), *HEAD), (*_UNUSED, BATCH_NORM_COUNTER)),
    "stage1_student": Table((*nested(ENCODER, "encoder"), *CLIP_DECODERS, *MAE_DECODERS)),
    "distill_student": Table((*nested(ENCODER, "encoder"), *CLIP_DECODERS)),
    "teacher": Table(nested(ENCODER, "encoder"), (*_UNUSED, *UNUSED_HEAD)),
}


def is_image_tower(shapes: Shapes) -> bool:
    """Whether a file holds an image tower alone, which is another family's.

    Its patch kernel is 2-D, or its table has the 16x16 patches of one frame and the class token.
    """
    trained = ("clip_decoder.", "mae_decoder.", "head.")
    is_frame = shapes.get("pos_embed", ())[1:2] == (257,)
    return (len(shapes[video_vit.ANCHORS[0]]) == 4 or is_frame) and not any(
        key.startswith(trained) for key in shapes
    )


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in shapes)

    asked = {"stage1_student": "pretrain", "distill_student": "distill"}
    if not has("cls_token", "clip_projector."):
        return None
    if architecture in asked:
        return asked[architecture]
    if architecture is None and not is_image_tower(shapes):
        if has("text_encoder.bert.", "text_encoder.embeddings."):
            return None
        if has("text_encoder."):
            raise ValueError(
                "expected a vision model, found one with a text tower (keys `text_encoder.*`);"
                " convert its video encoder alone with --architecture=video_vit or teacher"
            )
        if has("mae_decoder."):
            return "pretrain"
        if has("clip_decoder."):
            return "distill"
    if architecture == "video_classifier" or (architecture is None and has("head.")):
        if has("extra_mlp."):
            return "ap"
        return "cat" if has("down_norm.") else "classify"
    if is_image_tower(shapes):
        return None
    return "internvideo2_teacher" if architecture == "teacher" else "encoder"


# By the option of stage 2's tower; the others take an image for a short clip.
_IMAGE_POSITIONS: dict[bool | None, ImagePositions] = {None: "resized", False: "mean", True: "own"}


def encoder(options: Options, *, num_frames: int = 8, layer_scale: float = 1e-5) -> VideoViTConfig:
    """The video encoder of upstream's constructor options."""
    width = options.size("embed_dim")
    options.require("in_chans", 3)
    options.require("drop_cls_token", False)
    # True scales branches in the working dtype: of half precision, only the rounding differs.
    options.require("layerscale_no_force_fp32", False, True)
    has_image_table = options.take("sep_image_video_pos_embed", None)
    fused = options.take("use_fused_mlp", True)
    return VideoViTConfig(
        width=width,
        depth=options.take("depth"),
        num_heads=options.size("num_heads"),
        mlp_dim=video_vit.mlp_dim(options, width),
        patch_size=options.size("patch_size", 14),
        tubelet_size=options.size("tubelet_size", 1),
        image_size=options.size("img_size", 224),
        num_frames=options.size("num_frames", num_frames),
        pooled_dim=options.size("clip_embed_dim", 768),
        pooler_heads=options.size("attn_pool_num_heads", 16),
        position_embedding="separable" if options.take("sep_pos_embed", False) else "joint",
        image_positions=_IMAGE_POSITIONS[has_image_table],
        # `mlp_activation` may say what the fused flags imply.
        activation=options.take("mlp_activation", "gelu_tanh" if fused else "gelu_erf"),
        qk_norm=options.take("qk_normalization", True),
        qkv_bias=options.take("qkv_bias", False),
        layer_scale_init=options.take("init_values", layer_scale) or None,
        drop_path_rate=options.take("drop_path_rate", 0.0),
    )


def _classifier(options: Options, **head: Any) -> VideoClassifierConfig:
    return VideoClassifierConfig(
        encoder=encoder(options),
        num_classes=options.size("num_classes", 1000),
        dropout_rate=options.take("fc_drop_rate", 0.0),
        head_init_scale=options.take("init_scale", 0.001),
        **head,
    )


def _concat_classifier(options: Options) -> VideoClassifierConfig:
    method = options.take("merge_method", "proj")
    norm = options.take("merge_norm", "kaiming_BN")
    if method == "proj":
        # With the pooled feature alone, the class is that of the plain classifier.
        return _classifier(options)
    return _classifier(options, head="concat", merge_method=method, merge_norm=norm.lower())


def _pretrain(options: Options) -> Stage1StudentConfig:
    config = encoder(options)
    normalization = options.take("clip_norm_type", "l2")
    options.require("mae_norm_type", normalization)
    return Stage1StudentConfig(
        encoder=config,
        clip_layers=video_vit.layers(options, config.depth, "clip", "student_", None, 1),
        mae_layers=video_vit.layers(options, config.depth, "mae", "student_", None, 1),
        clip_target_dim=options.take("clip_teacher_embed_dim", 3200),
        clip_final_dim=options.take("clip_teacher_final_dim", 768),
        mae_target_dim=options.take("mae_teacher_embed_dim", 1408),
        normalization=normalization,
    )


def _distill(options: Options) -> DistillStudentConfig:
    config = encoder(options)
    options.require("clip_student_decoder", "MLP_Decoder", "Linear_Decoder")
    decoder = options.take("clip_student_decoder", "MLP_Decoder")
    return DistillStudentConfig(
        encoder=config,
        clip_layers=video_vit.layers(options, config.depth, "clip", "student_", None, 1),
        clip_target_dim=options.take("clip_teacher_embed_dim", 1408),
        clip_final_dim=options.take("clip_teacher_final_dim", 768),
        decoder="mlp" if decoder == "MLP_Decoder" else "linear",
        normalization=options.take("clip_norm_type", "l2"),
    )


def _teacher(options: Options) -> TeacherConfig:
    config = encoder(options)
    return TeacherConfig(
        encoder=config,
        layers=video_vit.layers(options, config.depth, "clip", "", 6, 3.34),
        normalization=options.take("clip_norm_type", "l2"),
    )


def to_options(config: Any) -> dict[str, Any]:
    """Constructor options of what the tensors of a model with a video ViT do not show."""
    vit = video_vit.encoder_config(config)
    options = {
        "num_heads": vit.num_heads,
        "img_size": vit.image_size,
        "init_values": vit.layer_scale_init or 0.0,
        "num_frames": vit.num_frames,
        "attn_pool_num_heads": vit.pooler_heads,
        "mlp_activation": vit.activation,
        "drop_path_rate": vit.drop_path_rate,
    }
    if vit.image_positions in ("mean", "own"):
        options["sep_image_video_pos_embed"] = vit.image_positions == "own"
    match config:
        case VideoClassifierConfig():
            options |= {"fc_drop_rate": config.dropout_rate, "init_scale": config.head_init_scale}
        case Stage1StudentConfig():
            for branch in ("clip", "mae"):
                chosen = getattr(config, f"{branch}_layers")
                options |= video_vit.listed(branch, "student_", chosen, config.normalization)
        case DistillStudentConfig():
            options |= video_vit.listed(
                "clip", "student_", config.clip_layers, config.normalization
            )
        case TeacherConfig():
            options |= video_vit.listed("clip", "", config.layers, config.normalization)
    return options


def infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor options that tensors show, and numbers of heads, which they do not."""
    width = sized(shapes, video_vit.ANCHORS[0])[0]
    heads = {
        "num_heads": video_vit.HEADS.get(width),
        "attn_pool_num_heads": 16 if width in video_vit.HEADS else None,
    }
    options: dict[str, Any] = {}
    problems = []
    try:
        options = _shown(kind, shapes, given, stored)
    except MisshapenTensorError:
        raise
    except ValueError as error:
        problems.append(str(error))
    expect_heads(heads, width, video_vit.HEADS, {**stored, **given}, problems)
    return options, heads


def _shown(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    options = video_vit.sizes(shapes) | {
        "clip_embed_dim": _rows(shapes, "clip_projector.cross_attn.proj.bias", 768),
        "qk_normalization": video_vit.in_blocks(shapes, "attn.q_norm.weight") is not None,
        "qkv_bias": video_vit.in_blocks(shapes, "attn.qkv.bias") is not None,
        "sep_pos_embed": "pos_embed_spatial" in shapes,
    }
    if video_vit.in_blocks(shapes, "ls1.gamma") is None:
        options["init_values"] = 0.0
    grid: Grid | None = None
    if "pos_embed_spatial" in shapes and "pos_embed_temporal" in shapes:
        side = math.isqrt(sized(shapes, "pos_embed_spatial", 3)[1])
        grid = sized(shapes, "pos_embed_temporal", 3)[1], side, side
    elif "pos_embed" in shapes:
        rows = sized(shapes, "pos_embed", 3)[1]
        grid = video_vit.table_grid(rows, 1, options, "num_frames", given, stored)
    if grid is not None:
        options["num_frames"] = grid[0] * options["tubelet_size"]
        options["img_size"] = grid[1] * options["patch_size"]
    if kind == "distill" and "img_pos_embed" in shapes:
        options["sep_image_video_pos_embed"] = True
    if kind in ("pretrain", "distill"):
        options |= _student_options(kind, shapes)
    if kind in ("classify", "ap", "cat"):
        options |= _head_options(kind, shapes, options, grid, given)
    return options


def _student_options(kind: str, shapes: Shapes) -> dict[str, Any]:
    options: dict[str, Any] = {
        "clip_return_layer": count_layers(shapes, "clip_decoder"),
        "clip_teacher_embed_dim": _rows(shapes, "clip_decoder.0.norm.weight", 0),
        "clip_teacher_final_dim": _rows(shapes, "final_clip_decoder.norm.weight", 0),
    }
    if kind == "pretrain":
        options["mae_return_layer"] = count_layers(shapes, "mae_decoder")
        options["mae_teacher_embed_dim"] = _rows(shapes, "mae_decoder.0.norm.weight", 0)
    else:
        linear = "clip_decoder.0.head.weight" in shapes
        options["clip_student_decoder"] = "Linear_Decoder" if linear else "MLP_Decoder"
    return options


def _head_options(
    kind: str,
    shapes: Shapes,
    options: Mapping[str, Any],
    grid: Grid | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    if not any(key.startswith("head.") for key in shapes) and "num_classes" not in given:
        raise ValueError(
            "expected a classifier's head, found none; pass --new_head --num_classes=N to start an"
            " untrained one"
        )
    head: dict[str, Any] = {"num_classes": _num_classes(shapes)}
    if kind == "cat" and not any(key.startswith("down_norm.") for key in shapes):
        head["merge_method"] = "proj"
    elif kind == "cat":
        pooled, steps = options["clip_embed_dim"], grid[0] if grid else 0
        per_step = "down.0.weight" in shapes
        merged = pooled * (1 + steps) if per_step else 2 * options["embed_dim"]
        method = "cls_avgN" if per_step else "cls_avg1"
        width = sized(shapes, "head.weight", 2)[1] if "head.weight" in shapes else merged
        head["merge_method"] = method if width == merged else f"{method}_proj"
        if "down_norm.running_mean" not in shapes:
            head["merge_norm"] = "LN"
        else:
            head["merge_norm"] = "BN" if "down_norm.weight" in shapes else "kaiming_BN"
    return head


def _num_classes(shapes: Shapes) -> int:
    """Rows of the head: of its weight, unless that is missing or by its bias transposed."""
    weight, bias = (
        sized(shapes, key) if (key := f"head.{name}") in shapes else ()
        for name in ("weight", "bias")
    )
    rows = bias if not weight or (bias and bias[0] == weight[-1]) else weight
    return rows[0] if rows else 1


def _rows(shapes: Shapes, key: str, default: int) -> int:
    """Size of a tensor's first axis; of an absent one, `default`, and the plan will report it."""
    return sized(shapes, key)[0] if key in shapes else default


FAMILY = video_vit.family(
    name="internvideo2",
    recognize=_recognize,
    kinds={
        "encoder": encoder,
        "classify": _classifier,
        "ap": lambda options: _classifier(options, head="attentive"),
        "cat": _concat_classifier,
        "pretrain": _pretrain,
        "distill": _distill,
        "internvideo2_teacher": _teacher,
    },
    tables=TABLES,
    infer=infer,
    to_options=to_options,
    new_head="video_classifier",
    recipes=RECIPES,
)
