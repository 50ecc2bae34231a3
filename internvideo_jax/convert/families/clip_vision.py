"""ViCLIP's video tower, alone or taken from a whole model.

Key names and constructor options are those of upstream
`InternVideo1/Pretrain/ViCLIP/models/backbones/clip/clip_vision.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from internvideo_jax.convert.engine.adaptations import Adaptation, Inflation
from internvideo_jax.convert.engine.family import Family, Shapes
from internvideo_jax.convert.engine.options import Options, expect_heads
from internvideo_jax.convert.engine.rules import ZEROS, Ignore, Table, norm, rule
from internvideo_jax.convert.engine.shapes import count_layers, sized
from internvideo_jax.convert.engine.transforms import (
    BATCHED,
    CONV2D_TO_3D,
    CONV3D,
    RESHAPE,
    Shape,
)
from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.convert.families import clip_text, video_vit
from internvideo_jax.models.clip_vision import ClipVisionConfig, fit_temporal_positions
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing

# Attention heads of CLIP's ViTs by width.
_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}

_BLOCK = "transformer.resblocks"
_TEMPORAL = "temporal_positional_embedding"

NEUTRAL = frozenset({"checkpoint_num", "dropout", "masking_prob"})

TABLE = Table(
    (
        rule("patch_embed/kernel", "conv1.weight", CONV3D, instead={"conv1.weight": CONV2D_TO_3D}),
        rule("cls_token", "class_embedding", RESHAPE),
        rule("pos_embed_spatial", "positional_embedding", BATCHED),
        # An image tower has none.
        rule("pos_embed_temporal", _TEMPORAL, initial=ZEROS),
        *norm("norm_pre", "ln_pre"),
        *clip_text.blocks("blocks"),
        *norm("norm", "ln_post"),
        rule("projection", "proj"),
    ),
    (
        Ignore(
            r"text_encoder\..*|transformer\..*|(token|positional)_embedding.*|ln_final\..*"
            r"|text_projection|logit_scale|temp",
            "text tower and the temperature",
        ),
        Ignore(r"attn_mask|context_length|input_resolution|vocab_size", "numbers of the class"),
    ),
)


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    texts = ("text_encoder.", "token_embedding.")
    if architecture is None and any(key.startswith(texts) for key in shapes):
        return None
    return "clip_vision"


def _config(options: Options) -> ClipVisionConfig:
    options.require("kernel_size", 1)
    width = options.size("width")
    return ClipVisionConfig(
        width=width,
        depth=options.take("layers"),
        num_heads=options.size("heads"),
        mlp_dim=4 * width,
        patch_size=options.size("patch_size"),
        image_size=options.size("input_resolution"),
        num_frames=options.size("num_frames", 8),
        projection_dim=options.size("output_dim"),
        temporal_positions=options.take("temp_embed", True),
        drop_path_rate=options.take("drop_path", 0.0),
    )


def _infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    kernel = sized(shapes, "conv1.weight", 4, 5)
    width, patch_size = kernel[0], kernel[-1]
    rows = sized(shapes, "positional_embedding", 2)[0]
    side = math.isqrt(rows - 1)
    problems = []
    if side < 1 or side * side != rows - 1:
        problems.append(
            "expected positions of a class token and of a square of patches, found"
            f" {rows} rows in positional_embedding; check that this is the right file"
        )
    shown = {
        "width": width,
        "layers": count_layers(shapes, _BLOCK),
        "patch_size": patch_size,
        "input_resolution": patch_size * side,
        "output_dim": sized(shapes, "proj", 2)[1],
    }
    if _TEMPORAL in shapes:
        shown["num_frames"] = sized(shapes, _TEMPORAL, 3)[1]
    elif len(kernel) == 5:
        shown["temp_embed"] = False
    heads = {"heads": _HEADS.get(width)}
    expect_heads(heads, width, _HEADS, {**stored, **given}, problems)
    return shown, heads


def to_options(config: ClipVisionConfig) -> dict[str, Any]:
    """Options, JSON-ready, of what a tower's tensors do not show."""
    return {
        "heads": config.num_heads,
        "num_frames": config.num_frames,
        "drop_path": config.drop_path_rate,
    }


def fit(
    path: str,
    shape: Shape,
    source: ClipVisionConfig,
    target: ClipVisionConfig,
    inflation: Inflation | None,
    tensor: Shape,
) -> Adaptation | None:
    """Positions for clips of another length or size, patch kernels for tubelets.

    Positions in time are fitted as `fit_temporal_positions` has it.
    """
    if not path.endswith("pos_embed_temporal"):
        return video_vit.fit(path, shape, source, target, inflation, tensor)
    old, new = source.grid[0], target.grid[0]
    if old == new:
        return None

    def apply(table: np.ndarray) -> np.ndarray:
        return fit_temporal_positions(table, new)

    done = "averaged" if new == 1 else "cut" if new < old else "interpolated"
    return Adaptation(f"positions of {old} frames {done} to {new}", (1, new, shape[-1]), apply)


def preprocessing(config: ClipVisionConfig) -> Preprocessing:
    """Clips of the tower's size and length, whole frames made square."""
    video = VideoPreprocessing(
        image_size=config.image_size, num_frames=config.num_frames, resize="bicubic_square"
    )
    return Preprocessing(video)


def _prepare(inputs: Arrays) -> Arrays:
    """Videos and images `[B, T, H, W, 3]`, and of the tokens to keep their indices."""
    moved = {n: np.moveaxis(x, 1, -1) if np.ndim(x) == 5 else x for n, x in inputs.items()}
    if "keep" in moved:
        moved["keep"] = kept_in_upstream_order(moved["keep"], moved["video"].shape[1])
    return moved


def _run(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    layers = tuple(range(module.config.depth))
    video = inputs["video"]
    output, state = module.apply(
        variables,
        video,
        hidden_layers=layers,
        capture_intermediates=lambda module, _: module.name == "patch_embed",
    )
    steps = video.shape[1] // module.config.tubelet_size
    (patches,) = state["intermediates"]["patch_embed"]["__call__"]
    side = math.isqrt(patches.shape[1] // steps)
    values = {
        "embed": output.pooled,
        "video/conv1": patches.reshape(len(video), steps, side, side, -1).transpose(0, 4, 1, 2, 3),
        "video/before_ln_pre": in_upstream_order(output.embedded, steps),
        "video/ln_post": in_upstream_order(output.tokens, steps),
    }
    for i, x in enumerate(output.hidden_states):
        values[f"video/block_{i}"] = in_upstream_order(x, steps)
    if "image" in inputs:
        image = module.apply(variables, inputs["image"])
        values |= {"embed_image": image.pooled, "image/before_ln_pre": image.embedded}
    if "keep" in inputs:
        masked = module.apply(variables, video, inputs["keep"])
        values |= {"embed_masked": masked.pooled, "masked/before_ln_pre": masked.embedded}
    return values


def in_upstream_order(tokens: Any, steps: int) -> Any:
    """Tokens `[B, N, D]`, the class token first, with place before time as upstream has them."""
    batch, _, width = tokens.shape
    patches = tokens[:, 1:].reshape(batch, steps, -1, width).swapaxes(1, 2)
    return jnp.concatenate([tokens[:, :1], patches.reshape(batch, -1, width)], axis=1)


def kept_in_upstream_order(keep: np.ndarray, steps: int) -> np.ndarray:
    """Indices `[B, K]`, as the tower takes them, of what upstream keeps `[B, N - 1]` (true).

    They are in upstream's order.
    """
    order = np.arange(keep.shape[1]).reshape(steps, -1).T.reshape(-1)
    rows = [[0, *(1 + order[np.flatnonzero(row)])] for row in keep]
    return np.asarray(rows, np.int32)


FAMILY = Family(
    name="clip_vision",
    anchors=("class_embedding",),
    prefixes=("", "vision_encoder."),
    recognize=_recognize,
    kinds={"clip_vision": _config},
    tables={"clip_vision": TABLE},
    infer=_infer,
    to_options=to_options,
    preprocessing=preprocessing,
    describe=video_vit.describe,
    neutral=NEUTRAL,
    retarget=video_vit.retarget,
    fit=fit,
    recipes={"clip_vision": Recipe(("video",), _run, _prepare, outputs=("embed",))},
)
