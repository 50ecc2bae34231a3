"""A model for other clips or classes than the checkpoint's, and the changes to tensors it needs.

Source: the loading rules of upstream `run_finetuning.py` and `run_linear_probing.py`; the grid that
a table was trained on is the checkpoint's own, where upstream takes 8 frames for granted.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from internvideo_jax.convert.engine.adaptations import (
    Adaptation,
    Inflation,
    inflate_patch_kernel,
    resize_positions,
    select_rows,
)
from internvideo_jax.convert.engine.plan import ANCHOR
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.convert.families.head_maps import K710_CLASSES, K710_ROWS
from internvideo_jax.models import VideoClassifierConfig, VideoMAEConfig

_TABLE = re.compile(r"(clip_|mae_)?pos_embed(_spatial|_temporal)?")


def encoder_config(config: Any) -> Any:
    """The config of the encoder inside a model's config, or that config itself."""
    return getattr(config, "encoder", config)


def retarget(
    config: Any,
    *,
    num_frames: int | None = None,
    image_size: int | None = None,
    tubelet_size: int | None = None,
    num_classes: int | None = None,
) -> Any:
    """The same model for clips of another length or size, or for other classes.

    Raises:
      ValueError: classes are asked of a model that has none.
    """
    asked = {"num_frames": num_frames, "image_size": image_size, "tubelet_size": tubelet_size}
    changes = {name: value for name, value in asked.items() if value is not None}
    encoder = dataclasses.replace(encoder_config(config), **changes)
    if encoder_config(config) is config:
        config = encoder
    else:
        config = dataclasses.replace(config, encoder=encoder)
    if num_classes is not None:
        if not isinstance(config, VideoClassifierConfig):
            raise ValueError(
                f"expected a classifier to have {num_classes} classes, found a checkpoint for"
                f" {type(config).__name__.removesuffix('Config')}; leave --num_classes out"
            )
        config = dataclasses.replace(config, num_classes=num_classes)
    return config


def fit(
    shapes: Mapping[str, Shape], source: Any, target: Any, inflation: Inflation | None = None
) -> dict[str, Adaptation]:
    """Changes that make a checkpoint of one config fit another, by canonical key.

    Args:
      shapes: shape of every tensor by canonical key.
      source: config of the model that the checkpoint holds.
      target: config of the model it is to become.
      inflation: how a patch kernel is spread over a tubelet; by default as upstream does, in the
        middle frame for image kernels and evenly for video kernels.

    Raises:
      ValueError: a change that no rule makes.
    """
    adaptations = {}
    for key, shape in shapes.items():
        adaptation = None
        if key == ANCHOR:
            adaptation = _fit_kernel(shape, encoder_config(target).tubelet_size, inflation)
        elif match := _TABLE.fullmatch(key):
            adaptation = _fit_table(
                shape, match, encoder_config(source), encoder_config(target).grid
            )
        elif key in ("head.weight", "head.bias") and isinstance(target, VideoClassifierConfig):
            adaptation = _fit_head(shape, source.num_classes, target.num_classes)
        if adaptation is not None:
            adaptations[key] = adaptation
    return adaptations


def _fit_kernel(shape: Shape, tubelet: int, inflation: Inflation | None) -> Adaptation | None:
    if len(shape) == 5 and shape[2] == tubelet:
        return None
    return inflate_patch_kernel(
        shape, tubelet, inflation or ("center" if len(shape) == 4 else "mean")
    )


def _fit_table(
    shape: Shape, match: re.Match[str], source: Any, new: tuple[int, int, int]
) -> Adaptation | None:
    branch, part = match.groups()
    old = source.grid
    if part == "_temporal":
        old, new = (old[0], 1, 1), (new[0], 1, 1)
    elif part == "_spatial":
        old, new = (1, *old[1:]), (1, *new[1:])
    num_extra = int(not (part or branch == "mae_" or isinstance(source, VideoMAEConfig)))
    # A table that is not of the model's grid to begin with is for the plan to report.
    if old == new or shape[1] != num_extra + old[0] * old[1] * old[2]:
        return None
    return resize_positions(shape, old, new, num_extra)


def _fit_head(shape: Shape, old: int, new: int) -> Adaptation | None:
    # A tensor that is not of the checkpoint's classes to begin with is for the plan to report.
    if old == new or shape[0] != old:
        return None
    if old == K710_CLASSES and new in K710_ROWS:
        return select_rows(shape, K710_ROWS[new], f"K710 classes to K{new}")
    raise ValueError(
        f"expected a head of {new} classes, found {old}: rows are chosen only from the"
        f" {K710_CLASSES} classes of K710, for {', '.join(map(str, K710_ROWS))} classes; pass"
        " --new_head to start an untrained one"
    )
