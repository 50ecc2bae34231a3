"""Untrained models that a few minutes can train."""

import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from internvideo_jax import saved_model
from internvideo_jax.models.preprocessing import Preprocessing
from internvideo_jax.models.video_vit import VideoViTConfig

# Of all linear layers of the family (`nn.linear.default_kernel_init`).
_RELEASED_STD = 0.02


def save_untrained(
    directory: Path, architecture: str, module: nn.Module, encoder: VideoViTConfig, seed: int
) -> None:
    """Writes a saved model with random weights, unless it is there.

    Kernels have a standard deviation of 1 / sqrt(inputs), so that a narrow network is as nonlinear
    as the released ones become; theirs of 0.02 fits widths in the thousands.

    Args:
      directory: of the model.
      architecture: its name in `models.ARCHITECTURES`.
      module: the model.
      encoder: of the model.
      seed: of the weights.
    """
    if directory.exists():
        return

    def fan_in(path: str, leaf: jax.Array) -> jax.Array:
        names = path.split("/")
        # Patch embeddings start so anyway; decoders and heads are normalised or start small.
        if "encoder" not in names or "patch_embed" in names or names[-1] != "kernel":
            return leaf
        inputs = encoder.mlp_dim if names[-2] == "fc2" else encoder.width
        return leaf * np.float32(inputs**-0.5 / _RELEASED_STD)

    example = (np.zeros(x.shape, x.dtype) for x in module.example_inputs())
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(seed), *example))
    flat = traverse_util.flatten_dict(variables, sep="/")
    scaled = {path: fan_in(path, leaf) for path, leaf in flat.items()}
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    saved_model.save(
        partial,
        architecture,
        module.config,
        Preprocessing(image_size=encoder.image_size, num_frames=encoder.num_frames),
        traverse_util.unflatten_dict(scaled, sep="/"),
    )
    partial.rename(directory)
