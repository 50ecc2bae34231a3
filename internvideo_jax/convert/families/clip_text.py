"""CLIP's text tower in a file of its own, or taken from the file of a whole model; MobileCLIP's.

Key names and constructor options are those of upstream
`InternVideo1/Pretrain/ViCLIP/models/backbones/clip/clip_text.py`; MobileCLIP's keys are spelled
otherwise, and its options are those of `mobileclip/text_encoder.py`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from internvideo_jax.convert.engine.adaptations import Adaptation
from internvideo_jax.convert.engine.family import Family, Shapes, keep
from internvideo_jax.convert.engine.options import Options, expect_heads
from internvideo_jax.convert.engine.rules import (
    Ignore,
    Rule,
    Table,
    from_layer,
    layer,
    norm,
    rule,
)
from internvideo_jax.convert.engine.shapes import count_layers, sized
from internvideo_jax.convert.engine.transforms import (
    IDENTITY,
    LINEAR,
    LINEAR_FROM_HEADS,
    RESHAPE,
    UNSQUEEZED,
    Shape,
)
from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.models.clip_text import ClipTextConfig, fit_text_positions
from internvideo_jax.preprocessing import Preprocessing, TextPreprocessing

# The vocabulary of all CLIP models, by the name under which it is published.
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"

# Attention heads of released towers by width.
_HEADS = {512: 8, 768: 12, 1024: 16, 1280: 20}

# MobileCLIP rounds hidden sizes of MLPs up to a multiple of this.
_MLP_UNIT = 16

NEUTRAL = frozenset({"checkpoint_num", "image_cfg", "note"})

_BLOCK = "transformer.resblocks"

# MobileCLIP's names, wherever the tower lies.
SPELLINGS = (
    (r"(^|\.)embedding_layer\.weight$", r"\1token_embedding.weight"),
    (r"(^|\.)positional_embedding\.pos_embed\.pos_embed$", r"\1positional_embedding"),
    (r"(^|\.)final_layer_norm\.", r"\1ln_final."),
    (r"(^|\.)projection_layer$", r"\1text_projection"),
    *(
        (rf"(^|\.)transformer\.(\d+)\.{theirs}\.", rf"\1{_BLOCK}.\2.{ours}")
        for theirs, ours in {
            r"pre_norm_mha\.0": "ln_1.",
            r"pre_norm_mha\.1\.qkv_proj": "attn.in_proj_",
            r"pre_norm_mha\.1\.out_proj": "attn.out_proj.",
            r"pre_norm_ffn\.0": "ln_2.",
            r"pre_norm_ffn\.1": "mlp.c_fc.",
            r"pre_norm_ffn\.4": "mlp.c_proj.",
        }.items()
    ),
)


def blocks(stack: str) -> tuple[Rule, ...]:
    """Rules of a CLIP transformer's blocks, of texts and of images alike."""
    keys = f"{_BLOCK}.{{layer}}"
    return (
        *norm(f"{stack}/norm1", f"{keys}.ln_1"),
        *norm(f"{stack}/norm2", f"{keys}.ln_2"),
        rule(f"{stack}/attn/qkv/kernel", f"{keys}.attn.in_proj_weight", LINEAR),
        rule(f"{stack}/attn/qkv/bias", f"{keys}.attn.in_proj_bias", RESHAPE),
        *layer(f"{stack}/attn/proj", f"{keys}.attn.out_proj", LINEAR_FROM_HEADS),
        *layer(f"{stack}/mlp/fc1", f"{keys}.mlp.c_fc"),
        *layer(f"{stack}/mlp/fc2", f"{keys}.mlp.c_proj"),
    )


def table(config: ClipTextConfig) -> Table:
    """The rules of a text tower, its keys without a prefix."""
    positions = UNSQUEEZED if is_mobileclip(config) else IDENTITY
    return Table(
        (
            rule("token_embed/embedding", "token_embedding.weight"),
            rule("pos_embed", "positional_embedding", positions),
            *(r for run in config.stacks for r in from_layer(blocks(run.name), run.start)),
            *norm("norm", "ln_final"),
            rule("projection", "text_projection"),
        ),
        (
            Ignore(
                r"(image_encoder|visual|vision_encoder|vision_align)\..*|logit_scale|temp",
                "image or video tower and the temperature",
            ),
            Ignore(r"attn_mask|context_length|input_resolution|vocab_size", "numbers of the class"),
        ),
    )


def is_mobileclip(config: ClipTextConfig) -> bool:
    """Whether files of such a tower have MobileCLIP's layout."""
    return config.other_lengths == "resized"


def kind_of(shapes: Shapes, prefix: str = "") -> str:
    """Which class a text tower's canonical shapes are of: MobileCLIP's table has four axes."""
    is_mobile = len(shapes.get(f"{prefix}positional_embedding", ())) == 4
    return "mobileclip_text" if is_mobile else "clip_text"


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    towers = ("vision_encoder.", "visual.")
    if architecture is None and any(key.startswith(towers) for key in shapes):
        return None
    return kind_of(shapes)


def clip_config(options: Options) -> ClipTextConfig:
    """The tower of ViCLIP's class, from its constructor's options."""
    width = options.size("transformer_width")
    return ClipTextConfig(
        width=width,
        depth=options.take("transformer_layers"),
        num_heads=options.size("transformer_heads"),
        mlp_dim=4 * width,
        vocab_size=options.size("vocab_size"),
        max_length=options.size("context_length"),
        projection_dim=options.size("embed_dim"),
    )


def mobileclip_config(options: Options) -> ClipTextConfig:
    """The tower of MobileCLIP's class, from its configuration file."""
    # The files hold the text tower's options as one.
    options.unfold("text_cfg")
    options.require("norm_layer", "layer_norm_fp32")
    options.require("model_name", "base")
    width = options.size("dim")
    # Two names of one number, of the class and of the file.
    embed_dim = options.take("embed_dim", None)
    depth = options.take("n_transformer_layers")
    heads = _by_layer("n_heads_per_layer", options.take("n_heads_per_layer"))
    multipliers = _by_layer("ffn_multiplier_per_layer", options.take("ffn_multiplier_per_layer"))
    mlp_dims = tuple(_mlp_dim(width, number) for number in multipliers)
    return ClipTextConfig(
        width=width,
        depth=depth,
        num_heads=heads[0],
        mlp_dim=mlp_dims[0],
        vocab_size=options.size("vocab_size"),
        max_length=options.size("context_length"),
        projection_dim=options.size("projection_dim", embed_dim),
        activation="gelu_erf",
        is_causal=options.take("causal_masking", True),
        other_lengths="resized",
        heads_by_layer=heads if len(set(heads)) > 1 else (),
        mlp_dims_by_layer=mlp_dims if len(set(mlp_dims)) > 1 else (),
    )


def _by_layer(name: str, value: Any) -> tuple[Any, ...]:
    """A number, or one for each layer, of which there is at least one."""
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not numbers or any(
        isinstance(n, bool) or not isinstance(n, int | float | Fraction) or not 0 < n < 2**20
        for n in numbers
    ):
        raise ValueError(
            f"{name}: expected a number above 0, or one of each layer, found {value!r}"
        )
    return numbers


def _mlp_dim(width: int, multiplier: float | Fraction) -> int:
    return _MLP_UNIT * math.ceil(multiplier * width / _MLP_UNIT)


def infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that a tower's tensors show, and those of released towers; see `Family.infer`."""
    vocab_size, width = sized(shapes, "token_embedding.weight", 2)
    depth = count_layers(shapes, _BLOCK)
    hidden = [sized(shapes, f"{_BLOCK}.{i}.mlp.c_fc.weight", 2)[0] for i in range(max(depth, 1))]
    projection_dim = sized(shapes, "text_projection", 2)[1]
    known = {**stored, **flattened(given)}
    if kind == "mobileclip_text":
        multipliers = [Fraction(size, width) for size in hidden]
        shown = {
            "vocab_size": vocab_size,
            "dim": width,
            "n_transformer_layers": depth,
            "context_length": sized(shapes, "positional_embedding", 4)[2],
            "projection_dim": projection_dim,
            "ffn_multiplier_per_layer": multipliers if len(set(hidden)) > 1 else multipliers[0],
        }
        heads = {"n_heads_per_layer": _HEADS.get(width)}
        if not isinstance(known.get("n_heads_per_layer"), list | tuple):
            expect_heads(heads, width, _HEADS, known)
        # Released towers of this width are of MobileCLIP-B, whose texts are read causally.
        return shown, heads | {"causal_masking": True}
    shown = {
        "vocab_size": vocab_size,
        "transformer_width": width,
        "transformer_layers": depth,
        "context_length": sized(shapes, "positional_embedding", 2)[0],
        "embed_dim": projection_dim,
    }
    heads = {"transformer_heads": _HEADS.get(width)}
    expect_heads(heads, width, _HEADS, known)
    return shown, heads


def flattened(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of the text tower, which MobileCLIP's files hold as one, beside them."""
    inner = options.get("text_cfg")
    return {**options, **(inner if isinstance(inner, Mapping) else {})}


def to_options(config: ClipTextConfig) -> dict[str, Any]:
    """Options, JSON-ready, of what a tower's tensors do not show."""
    if not is_mobileclip(config):
        return {"transformer_heads": config.num_heads}
    heads: int | Sequence[int] = list(config.heads_by_layer) or config.num_heads
    return {"n_heads_per_layer": heads, "causal_masking": config.is_causal}


def retarget(config: ClipTextConfig, changes: Mapping[str, int]) -> ClipTextConfig:
    """The same tower for texts of another length.

    Raises:
      ValueError: something else is to change.
    """
    others = {name: n for name, n in changes.items() if name != "max_text_length"}
    return dataclasses.replace(
        keep(config, others), max_length=changes.get("max_text_length", config.max_length)
    )


def fit(
    path: str, shape: Shape, source: ClipTextConfig, target: ClipTextConfig, *_: Any
) -> Adaptation | None:
    """Positions for texts of another length."""
    old, new = source.max_length, target.max_length
    if old == new or not path.endswith("pos_embed"):
        return None

    def apply(positions: np.ndarray) -> np.ndarray:
        return fit_text_positions(positions, new, source)

    is_cut = new < old and source.other_lengths == "first"
    done = "cut" if is_cut else "interpolated"
    return Adaptation(f"positions of {old} tokens {done} to {new}", (new, shape[-1]), apply)


def preprocessing(config: ClipTextConfig) -> Preprocessing:
    """Texts of the tower's length, in byte pairs."""
    # They differ in which words of a text stand for its beginning and end.
    tokenizer: Literal["clip_bpe", "open_clip_bpe"]
    tokenizer = "open_clip_bpe" if is_mobileclip(config) else "clip_bpe"
    return Preprocessing(text=TextPreprocessing(tokenizer, (VOCABULARY,), config.max_length))


def describe(config: ClipTextConfig) -> str:
    """Sizes of a tower."""
    return f"width {config.width}, depth {config.depth}, {config.num_heads} heads"


_HOOKS = (
    (r"(?:.*\.)?ln_final", "ln_final"),
    (r"(?:.*\.)?transformer\.(\d+)", r"layer_\1"),
    (r"(?:.*\.)?final_layer_norm", "all_tokens_after_final_norm"),
)


def _run(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    layers = tuple(range(module.config.depth))
    output: Any = module.apply(variables, inputs["input_ids"], hidden_layers=layers)
    name = "layer" if is_mobileclip(module.config) else "block"
    return {
        **dict.fromkeys(("embed", "text_embed"), output.pooled),
        **dict.fromkeys(("ln_final", "all_tokens_after_final_norm"), output.tokens),
        "embedding": output.embedded,
        **{f"{name}_{i}": x for i, x in enumerate(output.hidden_states)},
    }


FAMILY = Family(
    name="clip_text",
    anchors=("token_embedding.weight",),
    prefixes=("", "text_encoder."),
    recognize=_recognize,
    kinds={"clip_text": clip_config, "mobileclip_text": mobileclip_config},
    tables={"clip_text": table},
    infer=infer,
    to_options=to_options,
    preprocessing=preprocessing,
    describe=describe,
    neutral=NEUTRAL,
    spellings=SPELLINGS,
    recorded=flattened,
    retarget=retarget,
    fit=fit,
    recipes={
        "clip_text": Recipe(
            ("input_ids",),
            _run,
            hooks=_HOOKS,
            outputs=("text_embed",),
            other_names={"tokens": "input_ids", "text_tokens": "input_ids"},
        )
    },
)
