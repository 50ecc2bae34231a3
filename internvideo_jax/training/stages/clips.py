"""Clips on the device: pixels to what models take, and long batches taken a few clips at a time."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from internvideo_jax.nn.position_embedding import resize_matrix
from internvideo_jax.preprocessing import VideoPreprocessing, normalize

PyTree = Any


def normalized(video: Shaped[Array, "B T H W 3"]) -> Float[Array, "B T H W 3"]:
    """Clips as models take them: uint8 pixels are normalised, floats are so already."""
    return normalize(video, VideoPreprocessing()) if video.dtype == jnp.uint8 else video


def resized(video: Float[Array, "B T H W 3"], size: int) -> Float[Array, "B T S S 3"]:
    """Frames of `size` x `size` pixels, bicubic (a = -0.75), half-pixel centres, no antialiasing.

    Source: `engines/engine_for_pretraining.py`, which resizes the frames of its VideoMAE teacher to
    the size of the InternVL teacher; here every teacher gets its own size.
    """
    height, width = video.shape[2:4]
    if height != size:
        rows = resize_matrix(height, size, "bicubic")
        video = jnp.einsum("sh,bthwc->btswc", rows, video, precision="highest")
    if width != size:
        columns = resize_matrix(width, size, "bicubic")
        video = jnp.einsum("sw,bthwc->bthsc", columns, video, precision="highest")
    return video


def map_clips(fn: Callable[[PyTree], PyTree], batch: PyTree, clips: int | None) -> PyTree:
    """Applies `fn` to `clips` rows of a batch at a time, one after the other.

    Only one part's intermediate values live at a time. A part takes every n-th row, so that each
    device of a mesh works on its own rows of every part and none are moved.

    Args:
      fn: function of a pytree of arrays with leading axis B' to such a pytree, independent along
        that axis.
      batch: pytree of arrays with leading axis B.
      clips: rows in each part; None or at least B: all at once.

    Returns:
      What `fn` gives for all B rows.

    Raises:
      ValueError: `clips` does not divide B.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    if clips is None or clips >= size:
        return fn(batch)
    check_pass(size, clips)
    parts = jax.tree.map(lambda x: _split(x, clips), batch)
    return jax.tree.map(_join, jax.lax.map(lambda part: fn(_on_batch_axis(part)), parts))


def check_pass(size: int, clips: int | None) -> None:
    """Checks that parts of a batch are of one size.

    Args:
      size: rows of the batch.
      clips: rows in each part; None or at least `size`: all at once.

    Raises:
      ValueError: `clips` does not divide `size`.
    """
    if clips is None or clips >= size:
        return
    if clips < 1 or size % clips:
        raise ValueError(
            f"expected a number of clips per teacher pass that divides the {size} clips of a"
            f" (micro-)batch, found {clips}; change --config.stage.teacher_batch"
        )


def _split(x: jax.Array, clips: int) -> jax.Array:
    """`[B, ...]` to `[B / clips, clips, ...]`."""
    return x.reshape(clips, x.shape[0] // clips, *x.shape[1:]).swapaxes(0, 1)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    return x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _on_batch_axis(part: PyTree) -> PyTree:
    def constrain(x: jax.Array) -> jax.Array:
        return nn.with_logical_constraint(x, ("batch", *[None] * (x.ndim - 1)))

    return jax.tree.map(constrain, part)
