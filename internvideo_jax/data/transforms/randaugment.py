"""RandAugment: random image operations, the same ones for all frames of a clip.

A policy is written as "rand-m7-n4-mstd0.5-inc1" (timm's notation): `n` operations are drawn with
replacement, each is applied with probability one half, at a level of 0 to 10 drawn from
N(m, mstd); `inc1` takes the operations whose effect grows with the level. Drawing and applying are
apart: `draw_operations` gives operations with their arguments, `apply_operations` does them.

Source: upstream's `single_modality/datasets/rand_augment.py` (after timm).
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from internvideo_jax.config import nearest_name

PROBABILITY = 0.5
MAX_LEVEL = 10.0
FILL = (128, 128, 128)
_NOTATION = re.compile(r"(mstd|m|n|inc)(\d+(?:\.\d+)?)")


class Operation(NamedTuple):
    """One image operation: its name, a key of `KINDS`, and its argument (degrees, bits, factor,
    share of the size ...; 0 for operations without one)."""

    name: str
    argument: float


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """A policy.

    Attributes:
      magnitude: m, mean level.
      num_operations: n, drawn per clip.
      magnitude_std: standard deviation of the level.
      increasing: whether all operations grow stronger with the level.
    """

    magnitude: float = 10.0
    num_operations: int = 2
    magnitude_std: float = 0.0
    increasing: bool = False


def parse_policy(text: str) -> RandAugment:
    """Reads a policy such as "rand-m7-n4-mstd0.5-inc1".

    Raises:
      ValueError: not such a policy. "inc0" is refused, because upstream takes it for "inc1".
    """
    first, *parts = text.split("-")
    matches = [_NOTATION.fullmatch(part) for part in parts]
    values = {match[1]: float(match[2]) for match in matches if match}
    if first != "rand" or len(values) != len(parts) or not values.get("n", 2.0).is_integer():
        raise ValueError(
            f'expected a RandAugment policy such as "rand-m7-n4-mstd0.5-inc1", found {text!r}'
        )
    if values.get("inc", 1) != 1:
        raise ValueError(f"expected inc1 or no inc in a RandAugment policy, found {text!r}")
    return RandAugment(
        magnitude=values.get("m", RandAugment.magnitude),
        num_operations=int(values.get("n", RandAugment.num_operations)),
        magnitude_std=values.get("mstd", RandAugment.magnitude_std),
        increasing="inc" in values,
    )


def draw_operations(rng: np.random.Generator, policy: RandAugment) -> tuple[Operation, ...]:
    """Draws the operations of one clip: those that will be applied, in order."""
    names = INCREASING if policy.increasing else NOT_INCREASING
    operations = []
    for _ in range(policy.num_operations):
        name = names[rng.integers(len(names))]
        level = float(np.clip(rng.normal(policy.magnitude, policy.magnitude_std), 0, MAX_LEVEL))
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < PROBABILITY:
            operations.append(operation_at(name, level, sign))
    return tuple(operations)


def operation_at(name: str, level: float, sign: int = 1) -> Operation:
    """The operation at a level of 0 to 10; where it has two directions, `sign` (1, -1) tells."""
    return Operation(name, _kind(name).argument(level / MAX_LEVEL, sign))


def apply_operations(
    frames: np.ndarray,
    operations: Sequence[Operation],
    *,
    interpolation: str = "bicubic",
    fill: tuple[int, int, int] = FILL,
) -> np.ndarray:
    """Applies operations one after the other to every frame.

    Args:
      frames: uint8 `[T, H, W, 3]`.
      operations: from `draw_operations`.
      interpolation: Pillow's name of how moved pixels are interpolated.
      fill: colour of what moves in from outside.

    Returns:
      uint8 `[T, H, W, 3]`.

    Raises:
      ValueError: an unknown operation.
    """
    kinds = [(_kind(operation.name).apply, operation.argument) for operation in operations]
    if not kinds:
        return frames
    moving = {"resample": Image.Resampling[interpolation.upper()], "fillcolor": fill}

    def augmented(frame: np.ndarray) -> np.ndarray:
        image = Image.fromarray(frame)
        for apply, argument in kinds:
            image = apply(image, argument, moving)
        return np.asarray(image)

    return np.stack([augmented(frame) for frame in np.ascontiguousarray(frames)])


Moving = dict[str, Any]


class _Kind(NamedTuple):
    """`argument(share of the highest level, sign)`, `apply(image, argument, how pixels move)`."""

    argument: Callable[[float, int], float]
    apply: Callable[[Image.Image, float, Moving], Image.Image]


def _kind(name: str) -> _Kind:
    if name not in KINDS:
        raise ValueError(
            f"expected an operation of RandAugment ({', '.join(KINDS)}), found {name!r}"
            + nearest_name(name, KINDS)
        )
    return KINDS[name]


def _plain(function: Callable[[Image.Image], Image.Image]) -> _Kind:
    return _Kind(lambda share, sign: 0.0, lambda image, argument, moving: function(image))


def _enhance(enhancer: type, argument: Callable[[float, int], float]) -> _Kind:
    return _Kind(argument, lambda image, factor, moving: enhancer(image).enhance(factor))


def _shift(highest: float, matrix: Callable[[float, tuple[int, int]], Sequence[float]]) -> _Kind:
    """An affine map; `matrix(argument, (width, height))` leads from new pixels to old ones."""

    def apply(image: Image.Image, argument: float, moving: Moving) -> Image.Image:
        rows = matrix(argument, image.size)
        return image.transform(image.size, Image.Transform.AFFINE, rows, **moving)

    return _Kind(lambda share, sign: sign * highest * share, apply)


def _rotate(image: Image.Image, degrees: float, moving: Moving) -> Image.Image:
    return image.rotate(degrees, **moving)


def _posterize(image: Image.Image, bits: float, moving: Moving) -> Image.Image:
    # Not `ImageOps.posterize`: newer ones refuse 0 bits, which strong policies draw (black).
    mask = 0xFF & ~(0xFF >> int(bits))
    return image.point([i & mask for i in range(256)] * len(image.getbands()))


def _solarize(image: Image.Image, threshold: float, moving: Moving) -> Image.Image:
    return ImageOps.solarize(image, int(threshold))


def _solarize_add(image: Image.Image, add: float, moving: Moving) -> Image.Image:
    table = [min(255, i + int(add)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def _factor(share: float, sign: int) -> float:
    return 0.1 + 1.8 * share


def _increasing_factor(share: float, sign: int) -> float:
    return 1 + sign * 0.9 * share


_ENHANCERS = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}
_SHARED = {
    "AutoContrast": _plain(ImageOps.autocontrast),
    "Equalize": _plain(ImageOps.equalize),
    "Invert": _plain(ImageOps.invert),
    "Rotate": _Kind(lambda share, sign: sign * 30 * share, _rotate),
    "SolarizeAdd": _Kind(lambda share, sign: min(128, int(110 * share)), _solarize_add),
    "ShearX": _shift(0.3, lambda factor, size: (1, factor, 0, 0, 1, 0)),
    "ShearY": _shift(0.3, lambda factor, size: (1, 0, 0, factor, 1, 0)),
    "TranslateXRel": _shift(0.45, lambda part, size: (1, 0, part * size[0], 0, 1, 0)),
    "TranslateYRel": _shift(0.45, lambda part, size: (1, 0, 0, 0, 1, part * size[1])),
}
_PLAIN = {
    "Posterize": _Kind(lambda share, sign: int(4 * share), _posterize),
    "Solarize": _Kind(lambda share, sign: min(256, int(256 * share)), _solarize),
    **{name: _enhance(enhancer, _factor) for name, enhancer in _ENHANCERS.items()},
}
_INCREASING = {
    "PosterizeIncreasing": _Kind(lambda share, sign: 4 - int(4 * share), _posterize),
    "SolarizeIncreasing": _Kind(lambda share, sign: 256 - int(256 * share), _solarize),
    **{
        f"{name}Increasing": _enhance(enhancer, _increasing_factor)
        for name, enhancer in _ENHANCERS.items()
    },
}
KINDS: dict[str, _Kind] = {**_SHARED, **_PLAIN, **_INCREASING}
NOT_INCREASING = (*_SHARED, *_PLAIN)
INCREASING = (*_SHARED, *_INCREASING)
