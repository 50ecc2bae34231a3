"""What the files of all ViTs over tubelets have in common: keys of blocks, positions, clips.

Source: the loading rules of upstream `run_finetuning.py` and `run_linear_probing.py`; the grid that
a table was trained on is the checkpoint's own, where upstream takes 8 frames for granted.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
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
from internvideo_jax.convert.engine.shapes import count_layers, sized
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

# What training scripts, stage 2 and VideoMAE call the vision tower.
PREFIXES = ("", "backbone.", "encoder.", "vision_encoder.")

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

# Of a model that others align with; more are a mistake.
_MAX_LAYERS = 10_000
# Patches along a frame, far beyond those of any model.
_MAX_SIDE = 4096

_TABLE = re.compile(r"(?:.*/)?(?:clip_|mae_)?(img_)?pos_embed(_spatial|_temporal)?")


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
      ValueError: tubelets do not divide the clips, or classes or texts are asked of a model that
        has none.
    """
    if "max_text_length" in changes:
        raise ValueError(
            "expected a model of texts whose length can change, found another; leave"
            " --max_text_length out"
        )
    num_classes = changes.get("num_classes")
    of_clips = {name: value for name, value in changes.items() if name != "num_classes"}
    old = encoder_config(config)
    for name, unit in (("image_size", "patch_size"), ("num_frames", "tubelet_size")):
        size = of_clips.get(unit, getattr(old, unit))
        wanted = of_clips.get(name, getattr(old, name))
        if wanted % size:
            option = name.replace("num_frames", "frames")
            near = max(1, round(wanted / size)) * size
            raise ValueError(
                f"expected --{option} to be divisible by the {unit.replace('_', ' ')} {size}, found"
                f" {wanted}; pass --{option}={near}"
            )
    encoder = dataclasses.replace(old, **of_clips)
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
    elif part == "_spatial" or match[1]:
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
        " untrained head (--new_head; in training --config.stage.new_head=True)"
    )


def mlp_dim(options: Options, width: int) -> int:
    """Hidden size of the MLPs; a ratio may be a fraction in text ("48/11")."""
    ratio = options.take("mlp_ratio")
    if isinstance(ratio, str):
        match = re.fullmatch(r"(\d{1,9})(?:/([1-9]\d{0,8}))?", ratio, re.ASCII)
        ratio = Fraction(int(match[1]), int(match[2] or 1)) if match else None
    if isinstance(ratio, bool) or not isinstance(ratio, int | float | Fraction) or ratio <= 0:
        raise ValueError(f"mlp_ratio: expected a number above 0 or a fraction, found {ratio!r}")
    # A float multiplies as a float: the constructors round 1408 * (48 / 11) to 6144 before int().
    return int(width * ratio)


def layers(
    options: Options, depth: int, branch: str, side: str, count: int | None, interval: float
) -> tuple[int, ...]:
    """Aligned blocks: an explicit list, or some number of them stepping back from the last one.

    `branch` and `side` make up the options' names ("clip_return_layer",
    "mae_student_return_interval", ...). A count larger than the model is cut to it.
    """
    required = {} if count is None else {"default": count}
    count = options.take(f"{branch}_return_layer", **required)
    interval = options.take(f"{branch}_{side}return_interval", float(interval))
    name = f"{branch}_{side}return_index"
    listed = options.take(name, None)
    if listed:
        if not isinstance(listed, list | tuple) or any(type(i) is not int for i in listed):
            raise ValueError(f"{name}: expected a list of blocks, found {listed!r}")
        return tuple(sorted(listed))
    if type(count) is not int or not 0 <= count <= _MAX_LAYERS:
        raise ValueError(
            f"{branch}_return_layer: expected int from 0 to {_MAX_LAYERS}, found {count!r}"
        )
    return tuple(i for i in aligned_layers(depth, count, interval) if 0 <= i < depth)


def listed(branch: str, side: str, indices: tuple[int, ...], normalization: str) -> dict[str, Any]:
    """The options that `layers` reads as these blocks, and how their outputs are normalised."""
    return {
        f"{branch}_return_layer": len(indices),
        f"{branch}_{side}return_index": list(indices),
        f"{branch}_norm_type": normalization,
    }


def sizes(shapes: Shapes) -> dict[str, Any]:
    """Constructor options that the patch kernel and the blocks show."""
    kernel = sized(shapes, ANCHORS[0], 4, 5)
    width = kernel[0]
    fc1 = in_blocks(shapes, "mlp.fc1.weight")
    hidden = 4 * width if fc1 is None else sized(shapes, fc1, 2)[0]
    return {
        "embed_dim": width,
        "depth": count_layers(shapes, "blocks"),
        # A fraction survives the constructors' int(width * mlp_ratio).
        "mlp_ratio": Fraction(hidden, width),
        "patch_size": kernel[-1],
        # The kernel of an image model covers one frame.
        "tubelet_size": kernel[2] if len(kernel) == 5 else 1,
    }


def recorded(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a training script's arguments say of its model, as options of the model's class.

    Source: upstream `run_finetuning.py`, which makes models for `num_frames * num_segments` frames
    of `input_size` pixels and `nb_classes` classes.
    """
    options = dict(stored)
    for option, argument in (("img_size", "input_size"), ("num_classes", "nb_classes")):
        if argument in stored:
            options.setdefault(option, stored[argument])
    match options.get("img_size"):
        case [int(height), int(width)] if height == width:
            options["img_size"] = height
    frames, segments = stored.get("num_frames"), stored.get("num_segments")
    if type(frames) is int and type(segments) is int:
        options["num_frames"] = frames * segments
    if "num_frames" in options:
        options.setdefault("all_frames", options["num_frames"])
    return options


def table_grid(
    rows: int,
    num_extra: int,
    options: Mapping[str, Any],
    frames_name: str,
    given: Mapping[str, Any],
    stored: Mapping[str, Any],
) -> Grid:
    """Grid of a joint position table.

    What a file records is a hint: it chooses among the grids that the table can have.

    Args:
      rows: of the table, t*h*w and the extra ones.
      num_extra: rows for the class token.
      options: from `sizes`.
      frames_name: what the upstream class calls the frames of a clip.
      given: options that the user states.
      stored: options that the file holds, from `recorded`.

    Raises:
      ValueError: no grid fits, or several do, or the row for the class token is missing.
    """
    patch, tubelet = options["patch_size"], options["tubelet_size"]

    def known(source: Mapping[str, Any]) -> tuple[int | None, int | None]:
        size, frames = (
            value if type(value := source.get(name)) is int and value > 0 else None
            for name in ("img_size", frames_name)
        )
        return size and size // patch, frames and frames // tubelet

    num_tokens = rows - num_extra
    side, steps = known(given)
    if side or steps:
        return infer_grid(num_tokens, side=side, frames=steps)
    side, steps = known(stored)
    if side and steps and steps * side * side == num_tokens:
        return steps, side, side
    if num_extra and (_is_released(rows) or (side and steps and steps * side * side == rows)):
        raise ValueError(
            f"expected a position table with a row for the class token, found {rows} rows, one for"
            " each patch; check that this is the right file, or pass --option=img_size=PIXELS"
            " --option=num_frames=N of the model that was trained"
        )
    if side and steps:
        # They contradict the table, which then speaks for itself.
        side = steps = None
    try:
        alone = infer_grid(num_tokens)
    except ValueError:
        return infer_grid(num_tokens, side=side, frames=steps)
    try:
        hinted = infer_grid(num_tokens, side=side, frames=steps)
    except ValueError:
        return alone
    if hinted != alone:
        readings = " or ".join("x".join(map(str, grid)) for grid in (alone, hinted))
        raise ValueError(
            f"expected a position table that tells its grid, found {num_tokens} patch tokens:"
            f" {readings} (time x height x width), of which released models have the first and the"
            " file's recorded arguments suggest the second; pass --option=img_size=PIXELS"
            " --option=num_frames=N of the model that was trained"
        )
    return alone


def _is_released(num_tokens: int) -> bool:
    """Whether these are 16x16 patches of a power of two of frames."""
    return num_tokens % 256 == 0 and (num_tokens // 256).bit_count() == 1


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
    most = min(math.isqrt(max(num_tokens, 0)), _MAX_SIDE)
    grids = [
        (t, s, s)
        # A side of one patch divides every number.
        for s in range(2 - (side == 1 or frames is not None), most + 1)
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


def in_blocks(shapes: Shapes, name: str) -> str | None:
    """Key of a parameter in the first block that has it."""
    pattern = re.compile(rf"blocks\.\d+\.{re.escape(name)}")
    return next((key for key in shapes if pattern.fullmatch(key)), None)


# What is the same of all of their families.
family = functools.partial(
    Family,
    anchors=ANCHORS,
    prefixes=PREFIXES,
    preprocessing=preprocessing,
    describe=describe,
    neutral=NEUTRAL,
    recorded=recorded,
    retarget=retarget,
    fit=fit,
)
