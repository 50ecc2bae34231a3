"""Named changes to a parameter that fit it to a model of other clips or classes.

Unlike the transforms of a table they cannot be undone, so every use is reported.

Source: upstream `InternVideo2/single_modality/run_finetuning.py`, `run_linear_probing.py` and
`models/internvl_clip_vision.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.nn.position_embedding import Grid, resize_position_table

Inflation = Literal["center", "mean"]


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """A change to one parameter.

    Attributes:
      name: what is done, for reports.
      shape: shape afterwards.
      apply: the change itself.
    """

    name: str
    shape: Shape
    apply: Callable[[np.ndarray], np.ndarray]


def resize_positions(shape: Shape, old: Grid, new: Grid, num_extra: int) -> Adaptation:
    """A position table `[1, num_extra + t*h*w, D]` for another grid (t, h, w)."""
    rows = num_extra + new[0] * new[1] * new[2]

    def apply(table: np.ndarray) -> np.ndarray:
        return resize_position_table(table, old, new, num_extra)

    old_name, new_name = ("x".join(map(str, grid)) for grid in (old, new))
    return Adaptation(f"positions resized {old_name} -> {new_name}", (1, rows, shape[-1]), apply)


def inflate_patch_kernel(shape: Shape, tubelet_size: int, method: Inflation) -> Adaptation:
    """A patch kernel `[t, P, P, 3, D]` for tubelets of another number of frames.

    Args:
      shape: of the kernel.
      tubelet_size: frames that the kernel is to cover.
      method: what a kernel of one frame becomes: zeros but for the middle frame, or the same
        kernel at every frame divided by their number. Kernels of several frames are averaged to
        one.

    Raises:
      ValueError: a kernel of several frames is to cover several others.
    """
    frames = shape[0]
    wanted = (tubelet_size, *shape[1:])
    if frames > 1 and tubelet_size > 1:
        raise ValueError(
            f"expected a patch kernel of 1 or {tubelet_size} frames, found {frames}; convert with"
            f" tubelet size {frames} or 1"
        )

    def apply(kernel: np.ndarray) -> np.ndarray:
        if frames > 1:
            return kernel.astype(np.float32).mean(0, keepdims=True).astype(kernel.dtype)
        if method == "mean":
            return np.repeat(kernel / np.asarray(tubelet_size, kernel.dtype), tubelet_size, axis=0)
        inflated = np.zeros(wanted, kernel.dtype)
        inflated[tubelet_size // 2] = kernel[0]
        return inflated

    if frames > 1:
        return Adaptation(f"patch kernel averaged over {frames} frames", wanted, apply)
    return Adaptation(f"patch kernel inflated to {tubelet_size} frames ({method})", wanted, apply)


def select_outputs(shape: Shape, rows: Sequence[int], name: str) -> Adaptation:
    """The given outputs of a layer, of its kernel `[..., D]` or bias `[D]`."""
    index = np.asarray(rows)
    return Adaptation(name, (*shape[:-1], len(rows)), lambda array: array[..., index])
