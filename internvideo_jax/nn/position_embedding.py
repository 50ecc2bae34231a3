"""Fixed sinusoid tables and the resizing of learned position tables.

Everything here is a pure function of shapes known at trace time. Tables are numpy float32; the
resizers take numpy or JAX arrays and return the same kind, so converters and models share them.

Source: upstream `InternVideo2/single_modality/models/pos_embed.py`, `models/videomae.py` and the
loaders of `run_finetuning.py` / `run_linear_probing.py`.
"""

import functools
import math
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Array = TypeVar("Array", np.ndarray, jax.Array)
Grid = tuple[int, int, int]
Method = Literal["linear", "bicubic"]

# Keys kernel constant of PyTorch's and OpenCV's bicubic; `jax.image.resize` has -0.5.
_BICUBIC_A = -0.75


def sincos_1d(dim: int, positions: np.ndarray) -> Float[np.ndarray, "P D"]:
    """`[sin(p * w) | cos(p * w)]` with `w_j = 10000^(-j / (dim / 2))`.

    Args:
      dim: D, even.
      positions: of P tokens `[P]`.

    Returns:
      Table `[P, D]` float32.

    Raises:
      ValueError: `dim` is odd or not positive.
    """
    _check_width(dim, 2, "sincos_1d")
    # The tables of the released checkpoints start from float32 arithmetic throughout.
    exponents = np.arange(dim // 2, dtype=np.float32) / np.float32(dim / 2)
    frequencies = np.float32(1.0) / np.float32(10000.0) ** exponents
    angles = positions.astype(np.float32)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(dim: int, grid: tuple[int, int]) -> Float[np.ndarray, "HW D"]:
    """Sinusoids of a plane, rows in (h, w) order; column index first, then row index.

    Args:
      dim: D, a multiple of 4; each axis takes half of it.
      grid: tokens along (height, width).

    Returns:
      Table `[H*W, D]` float32.

    Raises:
      ValueError: 4 does not divide `dim`.
    """
    _check_width(dim, 4, "sincos_2d")
    height, width = grid
    columns = np.tile(sincos_1d(dim // 2, np.arange(width)), (height, 1))
    rows = np.repeat(sincos_1d(dim // 2, np.arange(height)), width, axis=0)
    return np.concatenate([columns, rows], axis=1)


def sincos_3d(
    dim: int, grid: tuple[int, int], frames: int, cls_token: bool = True
) -> Float[np.ndarray, "N D"]:
    """Sinusoids of a clip, rows in (t, h, w) order: D/4 channels of time, then 3D/4 of space.

    Args:
      dim: D, a multiple of 16.
      grid: tokens along (height, width).
      frames: T, tokens along time.
      cls_token: whether a first row of zeros stands for the class token.

    Returns:
      Table `[cls_token + T*H*W, D]` float32.

    Raises:
      ValueError: 16 does not divide `dim`.
    """
    _check_width(dim, 16, "sincos_3d")
    time = np.repeat(sincos_1d(dim // 4, np.arange(frames)), grid[0] * grid[1], axis=0)
    space = np.tile(sincos_2d(dim // 4 * 3, grid), (frames, 1))
    table = np.concatenate([time, space], axis=1)
    if cls_token:
        table = np.concatenate([np.zeros((1, dim), np.float32), table])
    return table


def sinusoid_table(num_tokens: int, dim: int) -> Float[np.ndarray, "N D"]:
    """VideoMAE's fixed table over the flat token index: even channels sine, odd ones cosine.

    The frequencies are computed in float64 as upstream does: at index 2047 a float32 angle would
    be off by 1e-4.

    Args:
      num_tokens: N.
      dim: D, any positive number.

    Returns:
      Table `[N, D]` float32.
    """
    _check_width(dim, 1, "sinusoid_table")
    frequencies = 10000.0 ** (-2.0 * (np.arange(dim) // 2) / dim)
    angles = np.arange(num_tokens)[:, None] * frequencies
    return np.where(np.arange(dim) % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def resize_matrix(old: int, new: int, method: Method) -> Float[np.ndarray, "new old"]:
    """Weights that resample `old` points to `new` ones, half-pixel centres, no antialiasing.

    Equal to `torch.nn.functional.interpolate(..., align_corners=False)`: `linear` clamps the source
    coordinate at 0, `bicubic` (a = -0.75) repeats the border samples.

    Returns:
      Read-only matrix `[new, old]` float32 whose rows sum to 1.

    Raises:
      ValueError: a length below 1, or an unknown method.
    """
    if old < 1 or new < 1:
        raise ValueError(f"expected lengths of at least 1, found {old} -> {new}")
    source = (np.arange(new) + 0.5) * (old / new) - 0.5
    if method == "linear":
        source = np.maximum(source, 0.0)
        taps = np.arange(0, 2)
    elif method == "bicubic":
        taps = np.arange(-1, 3)
    else:
        raise ValueError(f"expected method 'linear' or 'bicubic', found {method!r}")
    base = np.floor(source)
    distance = np.abs((source - base)[:, None] - taps)
    weights = 1.0 - distance if method == "linear" else _keys_kernel(distance)
    index = np.clip(base[:, None].astype(int) + taps, 0, old - 1)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], index), weights)
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def resize_position_table(
    table: Array, old_grid: Grid, new_grid: Grid, num_extra: int = 1
) -> Array:
    """Resizes a table as the released loaders do: linear in time, then bicubic in space.

    The parts of a separable table have grids (t, 1, 1) and (1, h, w). Upstream's loader reshapes
    the latter by the frame count and works for one frame only.

    Args:
      table: `[1, num_extra + t*h*w, D]`, rows in (t, h, w) order after the extra ones.
      old_grid: (t, h, w) that the table was made for.
      new_grid: (t, h, w) wanted.
      num_extra: leading rows (class token) that are passed through.

    Returns:
      `[1, num_extra + t'*h'*w', D]` in the table's dtype; the table itself if the grids agree.

    Raises:
      ValueError: the table's rows are not those of `old_grid`.
    """
    t, h, w = old_grid
    rows = num_extra + t * h * w
    if table.ndim != 3 or table.shape[:2] != (1, rows):
        raise ValueError(
            f"expected a position table [1, {num_extra} + {t}*{h}*{w} = {rows}, D], found shape"
            f" {tuple(table.shape)}; name the grid that the table was made for"
        )
    if old_grid == new_grid:
        return table
    xp = _namespace(table)
    dim = table.shape[-1]
    x = table[:, num_extra:].reshape(t, h, w, dim)
    x = _resize_axis(x, 0, new_grid[0], "linear")
    x = _resize_axis(x, 1, new_grid[1], "bicubic")
    x = _resize_axis(x, 2, new_grid[2], "bicubic")
    rows_of_grid = x.reshape(1, math.prod(new_grid), dim).astype(table.dtype)
    return xp.concatenate([table[:, :num_extra], rows_of_grid], axis=1)


def fit_positions(table: Array, length: int) -> Array:
    """Positions of a sequence of another length, as ViCLIP's loader fits them.

    Of more than the table has, they are interpolated; of fewer, they are the first ones.

    Args:
      table: `[1, N, D]`.
      length: N'.

    Returns:
      `[1, N', D]` in the table's dtype.
    """
    stored = table.shape[1]
    if length < stored:
        return table[:, :length]
    return resize_position_table(table, (stored, 1, 1), (length, 1, 1), num_extra=0)


def _namespace(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def _resize_axis(x: Array, axis: int, new: int, method: Method) -> Array:
    """Float32 resampling of one axis; skipped where the length is right already."""
    old = x.shape[axis]
    if old == new:
        return x
    xp = _namespace(x)
    options = {"precision": "highest"} if xp is jnp else {}
    moved = xp.moveaxis(x.astype(np.float32), axis, 0)
    resized = xp.einsum("ab,b...->a...", resize_matrix(old, new, method), moved, **options)
    return xp.moveaxis(resized, 0, axis)


def _keys_kernel(distance: np.ndarray) -> np.ndarray:
    """Cubic convolution weights at distances 0..2."""
    a, d = _BICUBIC_A, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far)


def _check_width(dim: int, divisor: int, name: str) -> None:
    if dim < 1 or dim % divisor:
        raise ValueError(
            f"{name} expects a positive width divisible by {divisor}, found {dim}; change the"
            " model's width or use a learned table"
        )
