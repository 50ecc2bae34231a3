"""Untrained models that a few minutes can train."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from internvideo_jax.files import atomic_directory
from internvideo_jax.models.video_vit import VideoViTConfig
from internvideo_jax.training.stage import Variables

# Of all linear layers of the family (`nn.linear.default_kernel_init`).
_RELEASED_STD = 0.02


def save_untrained(directory: Path, stage: Any, seed: int) -> None:
    """Writes a stage's model with random weights, unless it is there.

    Args:
      directory: of the saved model.
      stage: whose model; its module has an encoder.
      seed: of the weights.
    """
    if directory.exists():
        return
    variables = nn.unbox(jax.jit(stage.init)(jax.random.key(seed)))
    with atomic_directory(directory) as partial:
        stage.save(fan_in(variables, stage.module.config.encoder), partial)


def fan_in(variables: Variables, encoder: VideoViTConfig) -> Variables:
    """Rescales an encoder's kernels from the released deviation to 1 / sqrt(inputs).

    The released 0.02 is made for widths in the thousands; a narrow network is nearly linear at it.
    """

    def rescale(path: str, leaf: jax.Array) -> jax.Array:
        names = path.split("/")
        # Patch embeddings start so anyway; decoders and heads are normalised or start small.
        if "encoder" not in names or "patch_embed" in names or names[-1] != "kernel":
            return leaf
        inputs = encoder.mlp_dim if names[-2] == "fc2" else encoder.width
        return leaf * np.float32(inputs**-0.5 / _RELEASED_STD)

    flat = traverse_util.flatten_dict(variables, sep="/")
    return traverse_util.unflatten_dict({p: rescale(p, x) for p, x in flat.items()}, sep="/")
