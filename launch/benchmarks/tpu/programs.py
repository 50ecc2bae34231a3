"""Self-attention as programs for the TPU compiler: by our kernels, by JAX's, and by XLA.

Each takes its operands in the layout that it likes best, as projections write any. Functions here
run in the process that compiles.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from internvideo_jax.kernels.attention.shapes import Shape
from internvideo_jax.launch.benchmarks.static_profile import Program
from internvideo_jax.launch.benchmarks.static_profile import Shape as ArrayShape


@dataclasses.dataclass(frozen=True)
class Case:
    """Self-attention as a model runs it.

    Attributes:
      shape: tokens, heads and channels of each.
      batch: clips on a device.
      clips: of which so many are compiled; more than one where a step of the grid is short.
      heads: of which so many are compiled, where all would take too long.
      forward_only: whether the model is frozen.
    """

    shape: Shape
    batch: int = 1
    clips: int = 1
    heads: int | None = None
    forward_only: bool = False

    @property
    def name(self) -> str:
        """Tokens, heads and channels."""
        return "x".join(map(str, self.shape))

    @property
    def compiled_shape(self) -> tuple[int, int, int, int]:
        """Clips, heads, tokens and channels."""
        tokens, heads, head_dim = self.shape
        return self.clips, self.heads or heads, tokens, head_dim

    @property
    def share(self) -> float:
        """One clip's part of what is compiled."""
        clips, heads, _, _ = self.compiled_shape
        return self.shape.heads / (clips * heads)


# jax's flash attention takes whole blocks only: to what length tokens are padded, and the block
# that was fastest of those that fit.
FLASH_BLOCKS = {
    257: (384, 384),
    417: (512, 512),
    2048: (2048, 1024),
    2049: (2304, 768),
    4097: (4608, 768),
}


def make_program(implementation: str, case: Case, backward: bool) -> Program:
    """A case by an implementation, with gradients or without."""
    return PROGRAMS[implementation](case, backward)


def pallas_tpu(case: Case, backward: bool) -> Program:
    """Our kernels, on arrays that the projections write: [heads, channels, tokens].

    They have the padding that the memory's tiles have anyway, as in `static_profile.make_kernel`.
    """
    from internvideo_jax.kernels.attention import Request
    from internvideo_jax.kernels.attention.pallas_tpu.backward import backward as run_backward
    from internvideo_jax.kernels.attention.pallas_tpu.forward import forward as run_forward
    from internvideo_jax.kernels.attention.pallas_tpu.plan import make_plan, round_up

    clips, heads, tokens, head_dim = case.compiled_shape
    request = Request(
        clips, tokens, tokens, heads, heads, head_dim, "bfloat16", 1.0, platform="tpu"
    )
    shape = (clips * heads, head_dim, round_up(tokens, 128)), "bfloat16"

    def forward(q: Any, k: Any, v: Any) -> Any:
        return run_forward(make_plan(request, "forward"), q, k, v, False)[0]

    def both(q: Any, k: Any, v: Any, d_out: Any) -> Any:
        out, lse = run_forward(make_plan(request, "forward"), q, k, v, False)
        plan = make_plan(request, "backward")
        return out, run_backward(plan, q, k, v, out, lse, d_out, None, False)

    return (both, [shape] * 4) if backward else (forward, [shape] * 3)


def jax_flash(case: Case, backward: bool) -> Program:
    """The kernel that comes with JAX, with the best blocks; its segments hide the padding."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    clips, heads, tokens, head_dim = case.compiled_shape
    padded, block = FLASH_BLOCKS[tokens]
    fields = [field.name for field in dataclasses.fields(flash.BlockSizes)]
    sizes = flash.BlockSizes(**{n: 1 if n == "block_b" else block for n in fields})
    shape = (clips, heads, padded, head_dim), "bfloat16"

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        ids = None
        if padded != tokens:
            hidden = (jnp.arange(padded) >= tokens).astype(jnp.int32)
            hidden = jnp.broadcast_to(hidden, (clips, padded))
            ids = flash.SegmentIds(hidden, hidden)
        return flash.flash_attention(
            q, k, v, segment_ids=ids, sm_scale=head_dim**-0.5, block_sizes=sizes
        )

    return _differentiated(forward, shape, backward)


def xla(case: Case, backward: bool) -> Program:
    """Products and softmax as XLA compiles them, all scores in memory.

    All clips of a device are compiled: those of few would stay in fast memory.
    """
    import jax
    import jax.numpy as jnp

    clips, heads, tokens, head_dim = case.compiled_shape
    shape = (clips, heads, tokens, head_dim), "bfloat16"

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * head_dim**-0.5, axis=-1)
        return jnp.einsum("bhnm,bhmd->bhnd", weights.astype(q.dtype), v)

    return _differentiated(forward, shape, backward)


def _differentiated(forward: Callable[..., Any], shape: ArrayShape, backward: bool) -> Program:
    import jax

    def both(q: Any, k: Any, v: Any, d_out: Any) -> Any:
        out, pull_back = jax.vjp(forward, q, k, v)
        return out, pull_back(d_out)

    return (both, [shape] * 4) if backward else (forward, [shape] * 3)


PROGRAMS: dict[str, Callable[[Case, bool], Program]] = {
    "pallas_tpu": pallas_tpu,
    "jax_flash": jax_flash,
    "xla": xla,
}
