"""Named changes to a checkpoint's tensors, still in PyTorch's layout, that fit them to a model.

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
    """A change to one tensor.

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


def inflate_patch_kernel(
    shape: Shape, tubelet_size: int, method: Inflation = "center"
) -> Adaptation:
    """A patch kernel for tubelets of `tubelet_size` frames.

    Args:
      shape: `[D, 3, P, P]` of an image model or `[D, 3, t, P, P]` of a video model.
      tubelet_size: frames that the kernel is to cover.
      method: what a kernel of one frame becomes: zeros but for the middle frame, or the same
        kernel at every frame divided by their number. Kernels of several frames are averaged to
        one.

    Raises:
      ValueError: a kernel of several frames is to cover several others.
    """
    frames = shape[2] if len(shape) == 5 else 1
    wanted = (shape[0], shape[1], tubelet_size, *shape[-2:])
    if frames > 1 and tubelet_size > 1 and frames != tubelet_size:
        raise ValueError(
            f"expected a patch kernel of 1 or {tubelet_size} frames, found {frames} frames (shape"
            f" {shape}); convert with tubelet size {frames} or 1"
        )

    def apply(kernel: np.ndarray) -> np.ndarray:
        kernel = kernel.reshape(*shape[:2], frames, *shape[-2:])
        if frames > tubelet_size:
            return kernel.astype(np.float32).mean(2, keepdims=True).astype(kernel.dtype)
        if frames == tubelet_size:
            return kernel
        if method == "mean":
            return np.repeat(kernel / np.asarray(tubelet_size, kernel.dtype), tubelet_size, axis=2)
        inflated = np.zeros(wanted, kernel.dtype)
        inflated[:, :, tubelet_size // 2] = kernel[:, :, 0]
        return inflated

    if frames > tubelet_size:
        name = f"patch kernel averaged over {frames} frames"
    elif frames == tubelet_size:
        name = "patch kernel given a time axis"
    else:
        name = f"patch kernel inflated to {tubelet_size} frames ({method})"
    return Adaptation(name, wanted, apply)


def select_rows(shape: Shape, rows: Sequence[int], name: str) -> Adaptation:
    """The given rows of a tensor."""
    index = np.asarray(rows)
    return Adaptation(name, (len(rows), *shape[1:]), lambda array: array[index])
