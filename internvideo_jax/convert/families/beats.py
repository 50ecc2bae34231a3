"""BEATs, alone or as the audio tower in a stage-2 file.

Key names and constructor options are those of upstream
`InternVideo2/multi_modality/models/backbones/beats/`.
"""

import re
from collections.abc import Mapping
from typing import Any

from internvideo_jax.convert.engine.family import Family, Shapes
from internvideo_jax.convert.engine.options import Options
from internvideo_jax.convert.engine.rules import Ignore, Table, Tie, layer, norm, rule
from internvideo_jax.convert.engine.shapes import count_layers, sized
from internvideo_jax.convert.engine.transforms import (
    CONV2D,
    LINEAR,
    LINEAR_FROM_HEADS,
    RESHAPE,
    TO_WEIGHT_NORM,
    WEIGHT_NORM,
    Transform,
)
from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.models.beats import BeatsConfig, deep_norm_scale
from internvideo_jax.nn.mlp import Activation
from internvideo_jax.preprocessing import AudioPreprocessing, Preprocessing

_LAYER = "encoder.layers.{layer}"
_BIAS = "self_attn.relative_attention_bias.weight"
_CONV = "encoder.pos_conv.0"

_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu_erf", "gelu_fast": "gelu_tanh", "relu": "relu"}

# In the files one number per head has the axes of the scores.
_GATE_SCALE = Transform(
    "scale of gates",
    lambda shapes: ((1, *shapes[0], 1, 1),),
    lambda arrays, shapes: (arrays[0].reshape(shapes[0]),),
    lambda arrays: (arrays[0].reshape(1, -1, 1, 1),),
)

TABLE = Table(
    (
        rule("patch_embed/kernel", "patch_embedding.weight", CONV2D),
        rule("patch_embed/bias", "patch_embedding.bias"),
        *norm("patch_norm", "layer_norm"),
        *layer("patch_proj", "post_extract_proj"),
        rule(
            "pos_conv/v pos_conv/g",
            f"{_CONV}.weight_g {_CONV}.weight_v",
            WEIGHT_NORM,
            # For most of upstream's life the convolution was not normalised.
            instead={f"{_CONV}.weight": TO_WEIGHT_NORM},
        ),
        rule("pos_conv/bias", f"{_CONV}.bias"),
        *norm("norm", "encoder.layer_norm"),
        rule("relative_bias/embedding", f"encoder.layers.0.{_BIAS}"),
        *(
            r
            for name in "qkv"
            for r in layer(
                f"blocks/attn/{name}", f"{_LAYER}.self_attn.{name}_proj", LINEAR, RESHAPE
            )
        ),
        *layer("blocks/attn/proj", f"{_LAYER}.self_attn.out_proj", LINEAR_FROM_HEADS),
        *layer("blocks/attn/gate", f"{_LAYER}.self_attn.grep_linear"),
        rule("blocks/attn/gate_scale", f"{_LAYER}.self_attn.grep_a", _GATE_SCALE),
        *norm("blocks/attn_norm", f"{_LAYER}.self_attn_layer_norm"),
        *layer("blocks/mlp/fc1", f"{_LAYER}.fc1"),
        *layer("blocks/mlp/fc2", f"{_LAYER}.fc2"),
        *norm("blocks/mlp_norm", f"{_LAYER}.final_layer_norm"),
    ),
    (
        Ignore(r"predictor(_dropout)?\..*", "head of a fine-tuned classifier"),
        Ignore(r"encoder\.layers\.\d+\.self_attn\.grep_.*", "gates of a bias that there is not"),
        Ignore(
            r"(vision_encoder|text_encoder|(vision|text|audio|av_concat_\w+)_proj|av_fusion"
            r"|\w+_head)\..*|temp",
            "other parts of stage 2",
        ),
    ),
    (Tie(rf"encoder\.layers\.\d+\.{re.escape(_BIAS)}", f"encoder.layers.0.{_BIAS}"),),
)


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    others = ("vision_encoder.", "text_encoder.")
    if architecture is None and any(key.startswith(others) for key in shapes):
        return None
    return "beats"


def _config(options: Options) -> BeatsConfig:
    options.require("activation_fn", *_ACTIVATIONS)
    depth = options.size("encoder_layers", 12)
    norm_first = options.take("layer_norm_first", False)
    has_bias = options.take("relative_position_embedding", False)
    num_buckets = options.take("num_buckets", 320)
    is_gated = options.take("gru_rel_pos", False)
    max_distance = options.size("max_distance", 1280)
    # Buckets grow by logarithms from a quarter of them on, to both sides.
    if has_bias and max_distance <= num_buckets // 4:
        raise ValueError(
            f"max_distance: expected more than a quarter of the {num_buckets} buckets, found"
            f" {max_distance}"
        )
    return BeatsConfig(
        width=options.size("encoder_embed_dim", 768),
        depth=depth,
        num_heads=options.size("encoder_attention_heads", 12),
        mlp_dim=options.size("encoder_ffn_embed_dim", 3072),
        activation=_ACTIVATIONS[options.take("activation_fn", "gelu")],
        norm_first=norm_first,
        residual_scale=deep_norm_scale(depth) if options.take("deep_norm", False) else 1.0,
        gated_bias=is_gated and has_bias,
        gradient_scale=options.take("layer_wise_gradient_decay_ratio", 1.0),
        dropout_rate=options.take("dropout", 0.1),
        attention_dropout_rate=options.take("attention_dropout", 0.1),
        # Not upstream's: its class takes any filterbank, its data have this one.
        num_frames=options.size("num_frames", 998),
        num_mels=options.size("num_mels", 64),
        patch_size=options.size("input_patch_size"),
        patch_width=options.size("embed_dim", 512),
        patch_bias=options.take("conv_bias", False),
        conv_size=options.size("conv_pos", 128),
        conv_groups=options.size("conv_pos_groups", 16),
        num_buckets=num_buckets if has_bias else 0,
        max_distance=max_distance,
    )


def _infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    patch_width, _, patch_size, _ = sized(shapes, "patch_embedding.weight", 4)
    hidden, width = sized(shapes, "encoder.layers.0.fc1.weight", 2)
    is_normed = f"{_CONV}.weight_v" in shapes
    weight = sized(shapes, f"{_CONV}.weight_v" if is_normed else f"{_CONV}.weight", 3)
    shown = {
        "encoder_layers": count_layers(shapes, "encoder.layers"),
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": hidden,
        "input_patch_size": patch_size,
        "embed_dim": patch_width,
        "conv_bias": "patch_embedding.bias" in shapes,
        "conv_pos": weight[2],
        "conv_pos_groups": width // weight[1],
        "gru_rel_pos": "encoder.layers.0.self_attn.grep_linear.weight" in shapes,
        "relative_position_embedding": False,
    }
    for key in shapes:
        if key.endswith(_BIAS):
            num_buckets, num_heads = sized(shapes, key, 2)
            shown |= {"relative_position_embedding": True, "num_buckets": num_buckets}
            shown["encoder_attention_heads"] = num_heads
    # Those of BEATs iter3+; `audio_6b.pth` does not hold them.
    assumed = {
        "deep_norm": True,
        "max_distance": 800,
        "layer_wise_gradient_decay_ratio": 0.6,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return shown, assumed


def _to_options(config: BeatsConfig) -> dict[str, Any]:
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {
        "encoder_attention_heads": config.num_heads,
        "activation_fn": activations[config.activation],
        "layer_norm_first": config.norm_first,
        "deep_norm": config.residual_scale != 1.0,
        "layer_wise_gradient_decay_ratio": config.gradient_scale,
        "dropout": config.dropout_rate,
        "attention_dropout": config.attention_dropout_rate,
        "max_distance": config.max_distance,
        "num_frames": config.num_frames,
        "num_mels": config.num_mels,
    }


_HOOKS = (
    (r"patch_embedding", "patch_conv"),
    (r"layer_norm", "patch_norm"),
    (r"encoder\.pos_conv", "pos_conv_BCT"),
    (r"encoder\.layers\.(\d+)", r"layer_\1_TBC"),
)


def _run(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    c, filterbank = module.config, inputs["fbank"]
    output, state = module.apply(
        variables,
        filterbank,
        hidden_layers=tuple(range(c.depth)),
        capture_intermediates=True,
        mutable="intermediates",
    )
    inner = {k: v["__call__"][0] for k, v in state["intermediates"].items() if "__call__" in v}
    steps = filterbank.shape[1] // c.patch_size
    patches = inner["patch_embed"].reshape(len(filterbank), steps, -1, c.patch_width)
    values = {
        "features": output.tokens,
        "pooled": output.pooled,
        "patch_conv": patches.transpose(0, 3, 1, 2),
        "patch_norm": inner["patch_norm"],
        "pos_conv_BCT": inner["pos_conv"].swapaxes(1, 2),
        **{f"layer_{i}_TBC": x.swapaxes(0, 1) for i, x in enumerate(output.hidden_states)},
    }
    if "relative_bias" in inner:
        values["rel_bias_HQK"] = inner["relative_bias"]
    if "probe" in inputs:
        values["loss"] = (output.tokens * inputs["probe"]).sum()
    return values


FAMILY = Family(
    name="beats",
    anchors=("patch_embedding.weight",),
    prefixes=("", "audio_encoder."),
    recognize=_recognize,
    kinds={"beats": _config},
    tables={"beats": TABLE},
    infer=_infer,
    to_options=_to_options,
    preprocessing=lambda config: Preprocessing(
        audio=AudioPreprocessing(num_mels=config.num_mels, num_frames=config.num_frames)
    ),
    describe=lambda config: (
        f"width {config.width}, depth {config.depth}, {config.num_heads} heads,"
        f" {config.num_frames} frames of {config.num_mels} mel bins"
    ),
    # Of training and of classifiers' heads, which are left out.
    neutral=frozenset(
        {
            *("encoder_layerdrop", "dropout_input", "activation_dropout"),
            *("finetuned_model", "predictor_dropout", "predictor_class"),
        }
    ),
    spellings=(
        (r"pos_conv\.0\.parametrizations\.weight\.original0$", "pos_conv.0.weight_g"),
        (r"pos_conv\.0\.parametrizations\.weight\.original1$", "pos_conv.0.weight_v"),
    ),
    recipes={"beats": Recipe(("fbank",), _run, hooks=_HOOKS, outputs=("features",))},
)
