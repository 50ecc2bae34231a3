"""The definition of attention with products of half-precision numbers, for GPUs without a kernel.

GPUs multiply float32 many times slower. Neither cuDNN's attention nor Triton's kernels, which XLA
compiles for compute capability 8.0 and more alone, run on cards such as a T4, and cuDNN refuses
some options everywhere. Weights are rounded before they multiply values, as in fused kernels.
"""

import jax.numpy as jnp

from internvideo_jax.kernels.attention import reference
from internvideo_jax.kernels.attention.request import Operands, Request, Result

# Scores in memory, 1 GiB of float32.
_MAX_SCORES = 2**28


def supports(request: Request) -> str | None:
    """The reason why a call cannot be served, or None."""
    if request.platform != "gpu":
        return f"it is for GPUs, found platform {request.platform!r}"
    if request.dtype == "float32":
        return "its products are of bfloat16 or float16, found float32"
    scores = request.batch * request.heads * request.queries * request.keys
    if scores > _MAX_SCORES:
        return f"it holds up to {_MAX_SCORES:,} scores in memory, found {scores:,}"
    return None


def attend(request: Request, operands: Operands) -> Result:
    """Attention with all scores in memory in float32; differentiated by JAX.

    Args:
      request: what is asked.
      operands: the arrays.

    Returns:
      The result; its out has q's dtype, lse and weights are float32.
    """
    return reference.attend(request, operands, jnp.dtype(request.dtype))
