"""Whole transformer layers around attention, by the TPU compiler's estimates.

A kernel that is fast alone may cost copies of its operands in a model. Here it is part of a layer
of InternVideo2: norms, projections, attention and MLP, with the gradients of all of them.
"""

from typing import Any

from internvideo_jax.kernels.attention.shapes import Shape
from internvideo_jax.launch.benchmarks.static_profile import (
    CHIPS,
    Profile,
    Program,
    compile_estimated,
    pallas_cycles,
)
from internvideo_jax.launch.benchmarks.tpu.programs import Case

BLOCKS = (
    Case(Shape(2049, 16, 88), batch=4, clips=4),
    Case(Shape(417, 16, 88), batch=32, clips=32),
    Case(Shape(2049, 25, 128), batch=2, clips=2),
    Case(Shape(257, 25, 128), batch=64, clips=64, forward_only=True),
    Case(Shape(2048, 16, 88), batch=8, clips=8, forward_only=True),
)

# Hidden units of the MLP, by width.
MLP = {1408: 6144, 3200: 12800}

# "xla" is what is fastest of XLA's on TPUs: head by head for short sequences, else tile by tile.
IMPLEMENTATIONS = ("pallas_tpu", "xla")


def estimate_block(chip: str, case: Case, implementation: str, backward: bool) -> Profile:
    """What a layer takes: the compiler's estimates of XLA's operations, and our kernels' cycles.

    Args:
      chip: one of `CHIPS`.
      case: all its clips are compiled.
      implementation: one of `IMPLEMENTATIONS`.
      backward: whether gradients are computed, too.
    """
    found = compile_estimated(chip, make_block, case, implementation, backward)
    if found.cycles is None:
        return found
    cycles = found.cycles
    if implementation == "pallas_tpu":
        clips, heads, tokens, head_dim = case.compiled_shape
        for forward in (True, False)[: 1 + backward]:
            try:
                cycles += pallas_cycles(chip, forward, clips, tokens, tokens, heads, head_dim)
            except ValueError as error:
                return Profile(str(error))
    hbm_bytes = found.hbm_bytes or 0
    seconds = max(cycles / CHIPS[chip].clock, hbm_bytes / CHIPS[chip].bandwidth)
    return Profile("ok", cycles, hbm_bytes, seconds)


def make_block(case: Case, implementation: str, backward: bool) -> Program:
    """A layer in bfloat16 as a function of its parameters and input."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from internvideo_jax.kernels.attention.api import prefer
    from internvideo_jax.models.video_vit import VideoViTConfig
    from internvideo_jax.nn.blocks import PreNormBlock
    from internvideo_jax.nn.stack import Layer

    clips, heads, tokens, head_dim = case.compiled_shape
    of_xla = "xla_heads" if tokens**2 <= 2**21 else "xla_chunked"
    by = implementation if implementation == "pallas_tpu" else of_xla
    width = heads * head_dim
    config = VideoViTConfig(width, 1, heads, MLP[width], dtype="bfloat16")
    block = PreNormBlock(config, deterministic=True)
    layer = Layer(jnp.int32(0), drop_path_rate=None, cache=None)
    x = jax.ShapeDtypeStruct((clips, tokens, width), jnp.bfloat16)
    variables = nn.unbox(jax.eval_shape(block.init, jax.random.key(0), x, layer))
    leaves, tree = jax.tree.flatten(variables)

    def forward(x: Any, *parameters: Any) -> Any:
        with prefer(by):
            return block.apply(jax.tree.unflatten(tree, parameters), x, layer)

    def both(d_out: Any, x: Any, *parameters: Any) -> Any:
        _, pull_back = jax.vjp(forward, x, *parameters)
        return pull_back(d_out)

    shapes = [(x.shape, "bfloat16"), *((leaf.shape, "bfloat16") for leaf in leaves)]
    return (both, [shapes[0], *shapes]) if backward else (forward, shapes)
