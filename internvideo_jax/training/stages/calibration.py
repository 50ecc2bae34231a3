"""Measures a frozen teacher on clips, and finds which of its layers may multiply int8 values.

All blocks of a teacher run in one scan, so a layer (`nn.smoothing.PRODUCTS`) is in int8 in all of
them or in none. Layers that cost the targets too much stay in the compute dtype.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from internvideo_jax.nn.normalization import l2_normalize
from internvideo_jax.nn.smoothing import PRODUCTS
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.training.masking import MaskConfig, kept_to_mask
from internvideo_jax.training.stages.clips import normalized
from internvideo_jax.training.stages.int8_teachers import Calibration, quantize
from internvideo_jax.training.stages.teachers import FrozenTeacher

PyTree = Any

# How far targets may be from those without int8 (mean 1 - cos), and how much of the masks' tokens
# must be alike.
MAX_ERROR = 1e-3
MIN_AGREEMENT = 0.99


class Deviation(NamedTuple):
    """What int8 changes of a teacher.

    Attributes:
      blocks: mean 1 - cos of the tokens behind each block, float32 `[depth]`.
      agreement: share of the masks' tokens that are alike, given the same draws.
    """

    blocks: Float[np.ndarray, " depth"]
    agreement: float

    def of_targets(self, layers: Sequence[int]) -> float:
        """The mean 1 - cos behind the target layers."""
        return float(self.blocks[list(layers)].mean())

    def is_small(self, layers: Sequence[int]) -> bool:
        """Whether it is within `MAX_ERROR` and `MIN_AGREEMENT`."""
        return self.of_targets(layers) <= MAX_ERROR and self.agreement >= MIN_AGREEMENT


class Report(NamedTuple):
    """What a calibration has found.

    Attributes:
      alone: what each layer changes where it alone is in int8.
      tried: what several change together, the first time all; the last is what was chosen.
    """

    alone: dict[str, Deviation]
    tried: dict[tuple[str, ...], Deviation]


class Clips(NamedTuple):
    """What a teacher is measured on.

    Attributes:
      videos: batches of clips `[B, T, S, S, 3]` as the stage takes them, all of one size.
      mask: how the student's tokens are chosen, perhaps by the teacher's attention.
      mesh: where the clips and the teacher lie.
      rules: logical to mesh axes.
    """

    videos: Sequence[Array]
    mask: MaskConfig
    mesh: Mesh
    rules: Rules


def calibrate(
    teacher: FrozenTeacher, variables: PyTree, clips: Clips
) -> tuple[Calibration, Report]:
    """Measures a teacher's inputs and chooses its int8 layers.

    While the targets change too much with some layers in int8, the one that changes most alone is
    left out.

    Args:
      teacher: a video ViT; whether it is to be in int8 makes no difference.
      variables: its, without int8.
      clips: what it is measured on.

    Raises:
      ValueError: no layer may be in int8.
    """
    layers = teacher.config.layers
    largest = largest_inputs(teacher, variables, clips)

    def tested(products: tuple[str, ...]) -> Deviation:
        return deviation(teacher, variables, Calibration(products, largest), clips)

    alone = {product: tested((product,)) for product in PRODUCTS}
    products: tuple[str, ...] = PRODUCTS
    tried = {products: tested(products)}
    while not tried[products].is_small(layers):
        worst = max(products, key=lambda product: alone[product].of_targets(layers))
        products = tuple(product for product in products if product != worst)
        if not products:
            raise ValueError(
                f"expected a layer whose products may be of int8 values, found none: {worst} alone"
                f" changes the targets by {alone[worst].of_targets(layers):.1e} (1 - cos, at most"
                f" {MAX_ERROR:.0e}); leave the teacher as it is"
            )
        tried[products] = tested(products)
    return Calibration(products, largest), Report(alone, tried)


def largest_inputs(
    teacher: FrozenTeacher, variables: PyTree, clips: Clips
) -> dict[str, np.ndarray]:
    """`FrozenTeacher.largest_inputs` over all clips."""

    def measure(variables: PyTree, video: Array) -> dict[str, Array]:
        return teacher.largest_inputs(variables, normalized(video))

    found = _on_each(measure, clips, variables)
    return {name: np.max([inputs[name] for inputs in found], axis=0) for name in PRODUCTS}


def deviation(
    teacher: FrozenTeacher, variables: PyTree, calibration: Calibration, clips: Clips
) -> Deviation:
    """What the int8 layers of a calibration change of a teacher; arguments as of `calibrate`."""
    config: Any = teacher.config
    wide = dataclasses.replace(config, layers=tuple(range(config.encoder.depth)))
    teacher = dataclasses.replace(teacher, config=wide)
    mask = clips.mask
    with nn.logical_axis_rules(()):
        boxes = jax.eval_shape(teacher.init_wide, jax.random.key(0))
    int8 = quantize(variables, boxes, calibration, clips.mesh, clips.rules)

    def compare(both: tuple[PyTree, PyTree], video: Array) -> tuple[Array, Array]:
        video = normalized(video)
        encoded = [teacher.encode(variables, video) for variables in both]
        units = [l2_normalize(x.hidden_states) for x in encoded]
        # 1 - cos of unit vectors; the difference of two numbers near 1 would be mostly rounding.
        blocks = 0.5 * jnp.square(units[0] - units[1]).sum(-1).mean((1, 2))
        if mask.kind != "attention":
            return blocks, jnp.float32(1)
        grid = teacher.grid(video.shape[1])
        drawn = mask.draw(jax.random.key(0), len(video), grid, teacher.per_frame)
        masks = [
            kept_to_mask(mask.kept(drawn, x.pooler_attention[:, 1:]), 1 + math.prod(grid))
            for x in encoded
        ]
        return blocks, (masks[0] == masks[1])[:, 1:].mean()

    rows = _on_each(compare, clips, (variables, int8))
    blocks, agreement = (np.mean(column, axis=0) for column in zip(*rows, strict=True))
    return Deviation(blocks, float(agreement))


def _on_each(fn: Callable[[PyTree, Array], PyTree], clips: Clips, variables: PyTree) -> list[Any]:
    """What a function of variables and a batch of clips gives for each batch, on the host."""
    whole = NamedSharding(clips.mesh, PartitionSpec())
    with jax.set_mesh(clips.mesh), nn.logical_axis_rules(clips.rules):
        run = jax.jit(fn, out_shardings=whole)
        return [jax.device_get(run(variables, video)) for video in clips.videos]
