"""What the files of all ViTs over tubelets have in common: keys of blocks, positions, clips.

Source: the loading rules of upstream `run_finetuning.py` and `run_linear_probing.py`; the grid that
a table was trained on is the checkpoint's own, where upstream takes 8 frames for granted.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from internvideo_jax.convert.engine.adaptations import (
    Adaptation,
    Inflation,
    inflate_patch_kernel,
    resize_positions,
    select_outputs,
)
from internvideo_jax.convert.engine.family import Family, Shapes
from internvideo_jax.convert.engine.options import Options
from internvideo_jax.convert.engine.rules import Rule, layer, rule
from internvideo_jax.convert.engine.transforms import (
    CONV2D_TO_3D,
    CONV3D,
    LINEAR,
    LINEAR_FROM_HEADS,
    RESHAPE,
    Shape,
)
from internvideo_jax.convert.families.head_maps import K710_CLASSES, K710_ROWS
from internvideo_jax.models.stage1 import aligned_layers
from internvideo_jax.nn.position_embedding import Grid
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing

# All of them cut clips into tubelets with this layer.
ANCHORS = ("patch_embed.proj.weight",)

# Wrapper modules of training scripts, and what stage 2 and VideoMAE call the vision tower.
PREFIXES = ("", "module.", "backbone.", "encoder.", "vision_encoder.", "module.vision_encoder.")

# Attention heads by width: S14, B14, L14, 1B and VideoMAEv2-g, 6B. All poolers have 16.
HEADS = {384: 6, 768: 12, 1024: 16, 1408: 16, 3200: 25}

# Options that choose an implementation, or belong to training, data or tests: no effect here.
NEUTRAL = frozenset(
    {
        *("use_flash_attn", "use_fused_rmsnorm", "fused_mlp_heuristic"),
        *("use_checkpoint", "checkpoint_num", "head_drop_path_rate", "return_attn"),
        *("batch", "frames", "mask_ratio", "train_mode", "loss_ratios_clipmid_clipfinal_mae"),
    }
)

PATCH_EMBED = (
    rule(
        "patch_embed/kernel",
        "patch_embed.proj.weight",
        CONV3D,
        instead={"patch_embed.proj.weight": CONV2D_TO_3D},
    ),
    rule("patch_embed/bias", "patch_embed.proj.bias"),
)

BLOCKS: tuple[Rule, ...] = (
    rule("blocks/norm1/scale", "blocks.{layer}.norm1.weight"),
    rule("blocks/norm2/scale", "blocks.{layer}.norm2.weight"),
    rule("blocks/attn/qkv/kernel", "blocks.{layer}.attn.qkv.weight", LINEAR),
    rule("blocks/attn/q_norm/scale", "blocks.{layer}.attn.q_norm.weight", RESHAPE),
    rule("blocks/attn/k_norm/scale", "blocks.{layer}.attn.k_norm.weight", RESHAPE),
    *layer("blocks/attn/proj", "blocks.{layer}.attn.proj", LINEAR_FROM_HEADS),
    *layer("blocks/mlp/fc1", "blocks.{layer}.mlp.fc1"),
    *layer("blocks/mlp/fc2", "blocks.{layer}.mlp.fc2"),
)

_TABLE = re.compile(r"(?:.*/)?(clip_|mae_)?pos_embed(_spatial|_temporal)?")


def encoder_config(config: Any) -> Any:
    """The config of the encoder inside a model's config, or that config itself."""
    return getattr(config, "encoder", config)


def describe(config: Any) -> str:
    """Sizes of a model."""
    encoder = encoder_config(config)
    text = (
        f"width {encoder.width}, depth {encoder.depth}, {encoder.num_heads} heads,"
        f" {encoder.num_frames} frames of {encoder.image_size}x{encoder.image_size}"
    )
    classes = getattr(config, "num_classes", None)
    return f"{text}, {classes} classes" if classes else text


def preprocessing(config: Any) -> Preprocessing:
    """Clips of the encoder's size and length."""
    encoder = encoder_config(config)
    return Preprocessing(
        VideoPreprocessing(image_size=encoder.image_size, num_frames=encoder.num_frames)
    )


def retarget(config: Any, changes: Mapping[str, int]) -> Any:
    """The same model for clips of another length or size, or for other classes.

    Raises:
      ValueError: classes are asked of a model that has none.
    """
    num_classes = changes.get("num_classes")
    of_clips = {name: value for name, value in changes.items() if name != "num_classes"}
    encoder = dataclasses.replace(encoder_config(config), **of_clips)
    if encoder_config(config) is config:
        config = encoder
    else:
        config = dataclasses.replace(config, encoder=encoder)
    if num_classes is None:
        return config
    if not hasattr(config, "num_classes"):
        raise ValueError(
            f"expected a classifier to have {num_classes} classes, found a checkpoint for"
            f" {type(config).__name__.removesuffix('Config')}; leave --num_classes out"
        )
    return dataclasses.replace(config, num_classes=num_classes)


def fit(
    path: str, shape: Shape, source: Any, target: Any, inflation: Inflation | None, tensor: Shape
) -> Adaptation | None:
    """Positions for another grid, patch kernels for other tubelets, K710 heads for one Kinetics.

    A patch kernel is spread over a longer tubelet as upstream does, in the middle frame for image
    kernels and evenly for video kernels.
    """
    old, new = encoder_config(source), encoder_config(target)
    if path.endswith("patch_embed/kernel") and shape[0] != new.tubelet_size:
        default: Inflation = "center" if len(tensor) == 4 else "mean"
        return inflate_patch_kernel(shape, new.tubelet_size, inflation or default)
    if match := _TABLE.fullmatch(path):
        return _fit_table(shape, match, old.grid, new.grid)
    if path in ("params/head/kernel", "params/head/bias"):
        return _fit_head(shape, target.num_classes)
    return None


def _fit_table(shape: Shape, match: re.Match[str], old: Grid, new: Grid) -> Adaptation | None:
    part = match[2]
    if part == "_temporal":
        old, new = (old[0], 1, 1), (new[0], 1, 1)
    elif part == "_spatial":
        old, new = (1, *old[1:]), (1, *new[1:])
    # Tables with a class token have a row for it.
    num_extra = shape[1] - math.prod(old)
    return None if old == new else resize_positions(shape, old, new, num_extra)


def _fit_head(shape: Shape, num_classes: int) -> Adaptation | None:
    if shape[-1] == num_classes:
        return None
    if shape[-1] == K710_CLASSES and num_classes in K710_ROWS:
        return select_outputs(shape, K710_ROWS[num_classes], f"K710 classes to K{num_classes}")
    raise ValueError(
        f"expected {num_classes} classes, found {shape[-1]}: a head's outputs are chosen only from"
        f" the {K710_CLASSES} classes of K710, for {', '.join(map(str, K710_ROWS))}; start an"
        " untrained head (--new_head; `new_head` of a config)"
    )


def mlp_dim(options: Options, width: int) -> int:
    """Hidden size of the MLPs; a ratio may be a fraction in text ("48/11")."""
    ratio = options.take("mlp_ratio")
    # A float multiplies as a float: the constructors round 1408 * (48 / 11) to 6144 before int().
    return int(width * (Fraction(ratio) if isinstance(ratio, str) else ratio))


def layers(
    options: Options, depth: int, branch: str, side: str, count: int | None, interval: float
) -> tuple[int, ...]:
    """Aligned blocks: an explicit list, or some number of them stepping back from the last one.

    `branch` and `side` make up the options' names ("clip_return_layer",
    "mae_student_return_interval", ...). A count larger than the model is cut to it.
    """
    required = {} if count is None else {"default": count}
    count = options.take(f"{branch}_return_layer", **required)
    interval = options.take(f"{branch}_{side}return_interval", interval)
    listed = options.take(f"{branch}_{side}return_index", None)
    if listed:
        return tuple(sorted(listed))
    return tuple(i for i in aligned_layers(depth, count, interval) if i >= 0)


def listed(branch: str, side: str, indices: tuple[int, ...], normalization: str) -> dict[str, Any]:
    """The options that `layers` reads as these blocks, and how their outputs are normalised."""
    return {
        f"{branch}_return_layer": len(indices),
        f"{branch}_{side}return_index": list(indices),
        f"{branch}_norm_type": normalization,
    }


def sizes(shapes: Shapes) -> dict[str, Any]:
    """Constructor options that the patch kernel and the blocks show."""
    kernel = shapes[ANCHORS[0]]
    width = kernel[0]
    hidden = in_blocks(shapes, "mlp.fc1.weight") or (4 * width, width)
    return {
        "embed_dim": width,
        "depth": count(shapes, "blocks"),
        # A fraction survives the constructors' int(width * mlp_ratio).
        "mlp_ratio": Fraction(hidden[0], width),
        "patch_size": kernel[-1],
        # The kernel of an image model covers one frame.
        "tubelet_size": kernel[2] if len(kernel) == 5 else 1,
    }


def table_grid(
    num_tokens: int,
    options: Mapping[str, Any],
    frames_name: str,
    given: Mapping[str, Any],
    stored: Mapping[str, Any],
) -> Grid:
    """Grid of a joint position table of `num_tokens` patch tokens.

    Args:
      num_tokens: t*h*w.
      options: from `sizes`.
      frames_name: what the upstream class calls the frames of a clip.
      given: options that the user states.
      stored: options that the file holds.

    Raises:
      ValueError: no grid fits, or several do.
    """
    patch, tubelet = options["patch_size"], options["tubelet_size"]

    def known(source: Mapping[str, Any]) -> dict[str, int | None]:
        size, frames = (
            value if isinstance(value := source.get(name), int) else None
            for name in ("img_size", frames_name)
        )
        return {"side": size and size // patch, "frames": frames and frames // tubelet}

    if any(known(given).values()):
        return infer_grid(num_tokens, **known(given))
    try:
        return infer_grid(num_tokens, **known(stored))
    except ValueError:
        # Training scripts store the frames they read, which need not be the model's.
        return infer_grid(num_tokens)


def infer_grid(num_tokens: int, *, side: int | None = None, frames: int | None = None) -> Grid:
    """Grid (t, h, w) of a joint position table of `num_tokens` patch tokens and square frames.

    Args:
      num_tokens: t*h*w.
      side: h = w, if it is known.
      frames: t, if it is known.

    Raises:
      ValueError: no grid fits, or several do and none of them is the released models' 16x16
        patches of a power of two of frames.
    """
    grids = [
        (t, s, s)
        for s in range(1, math.isqrt(num_tokens) + 1)
        if num_tokens % (s * s) == 0 and (t := num_tokens // (s * s))
        if side in (None, s) and frames in (None, t)
    ]
    released = [g for g in grids if g[1] == 16 and g[0].bit_count() == 1]
    if len(grids) == 1 or len(released) == 1:
        return (released or grids)[0]
    raise ValueError(
        f"expected a position table that tells its grid, found {num_tokens} patch tokens, which are"
        f" {' or '.join('x'.join(map(str, g)) for g in grids[:-12:-1]) or 'no grid'} (time x height"
        f" x width) with side {side or 'unknown'} and {frames or 'unknown'} steps; pass"
        " --option=img_size=PIXELS or --option=num_frames=N of the model that was trained"
    )


def in_blocks(shapes: Shapes, name: str) -> Shape | None:
    """Shape of a parameter in the first block that has it."""
    pattern = re.compile(rf"blocks\.\d+\.{re.escape(name)}")
    return next((shape for key, shape in shapes.items() if pattern.fullmatch(key)), None)


def count(shapes: Iterable[str], module: str) -> int:
    """Submodules `module.0` ... that keys name."""
    found = (re.match(rf"{module}\.(\d+)\.", key) for key in shapes)
    return 1 + max((int(m[1]) for m in found if m), default=-1)


# What is the same of all of their families.
family = functools.partial(
    Family,
    anchors=ANCHORS,
    prefixes=PREFIXES,
    preprocessing=preprocessing,
    describe=describe,
    neutral=NEUTRAL,
    retarget=retarget,
    fit=fit,
)
