"""Reading a model's sizes off shapes that nobody has checked yet."""

import re
from collections.abc import Iterable, Mapping

from internvideo_jax.convert.engine.transforms import Shape

# More digits than layers have; `int` refuses thousands of them, in words of its own.
_NUMBER = r"(\d{1,6})"


class MisshapenTensorError(ValueError):
    """A tensor that sizes cannot be read from; no option makes up for it."""


def sized(shapes: Mapping[str, Shape], key: str, *axes: int) -> Shape:
    """Shape of a tensor that sizes are read from.

    Args:
      shapes: of all tensors.
      key: of the tensor.
      axes: how many it may have; none: any number but 0.

    Raises:
      KeyError: there is no such tensor.
      MisshapenTensorError: it has another number of axes, or is empty.
    """
    shape = shapes[key]
    if 0 in shape:
        raise MisshapenTensorError(
            f"expected numbers in {key}, found an empty tensor of shape {list(shape)}; save the"
            " checkpoint again with all of its parameters"
        )
    if not shape or (axes and len(shape) not in axes):
        wanted = " or ".join(map(str, axes)) or "1 or more"
        raise MisshapenTensorError(
            f"expected {key} to have {wanted} axes, found the shape {list(shape)}"
        )
    return shape


def count_layers(keys: Iterable[str], module: str) -> int:
    """Number of submodules `module.0.`, `module.1.`, ... that keys name.

    Of some, keys may be missing altogether; a number far beyond the others is no layer's.
    """
    pattern = re.compile(rf"{re.escape(module)}\.{_NUMBER}\.", re.ASCII)
    numbers = {int(match[1]) for key in keys if (match := pattern.match(key))}
    if not numbers or max(numbers) < 2 * len(numbers):
        return 1 + max(numbers, default=-1)
    return next(number for number in range(len(numbers) + 1) if number not in numbers)
