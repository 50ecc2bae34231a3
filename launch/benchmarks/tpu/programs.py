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
      kv_heads: heads of keys and values, as many as of queries by default.
      is_causal: whether a token sees itself and what comes before it alone.
    """

    shape: Shape
    batch: int = 1
    clips: int = 1
    heads: int | None = None
    forward_only: bool = False
    kv_heads: int | None = None
    is_causal: bool = False

    @property
    def name(self) -> str:
        """Tokens, heads and channels."""
        return "x".join(map(str, self.shape)) + "-causal" * self.is_causal

    @property
    def compiled_shape(self) -> tuple[int, int, int, int]:
        """Clips, heads, tokens and channels."""
        tokens, heads, head_dim = self.shape
        return self.clips, self.heads or heads, tokens, head_dim

    @property
    def compiled_kv_heads(self) -> int:
        """Of keys and values, for the heads that are compiled."""
        heads = self.shape.heads
        return self.compiled_shape[1] * (self.kv_heads or heads) // heads

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

CAUSAL_FLASH_BLOCKS = {2048: (2048, 512)}


def make_program(implementation: str, case: Case, backward: bool) -> Program:
    """A case by an implementation, with gradients or without."""
    return PROGRAMS[implementation](case, backward)


def pallas_tpu(case: Case, backward: bool) -> Program:
    """Our kernels, on arrays that the projections write: [heads, channels, tokens].

    They have the padding that the memory's tiles have anyway, as in `static_profile.make_kernel`.
    """
    from internvideo_jax.kernels.attention import Request
    from internvideo_jax.kernels.attention.pallas_tpu import kernels_of, plan_of
    from internvideo_jax.kernels.attention.pallas_tpu.plan import round_up

    clips, heads, tokens, head_dim = case.compiled_shape
    kv_heads = case.compiled_kv_heads
    request = Request(
        clips,
        tokens,
        tokens,
        heads,
        kv_heads,
        head_dim,
        "bfloat16",
        1.0,
        platform="tpu",
        is_causal=case.is_causal,
        starts_at_zero=True,
    )
    run_forward, run_backward = kernels_of(request)
    lanes = round_up(tokens, 128)
    queries, keys = (((clips * n, head_dim, lanes), "bfloat16") for n in (heads, kv_heads))

    def forward(q: Any, k: Any, v: Any) -> Any:
        return run_forward(plan_of(request, "forward"), q, k, v, False)[0]

    def both(q: Any, k: Any, v: Any, d_out: Any) -> Any:
        out, lse = run_forward(plan_of(request, "forward"), q, k, v, False)
        plan = plan_of(request, "backward")
        return out, run_backward(plan, q, k, v, out, lse, d_out, None, False)

    shapes = [queries, keys, keys]
    return (both, [*shapes, queries]) if backward else (forward, shapes)


def jax_flash(case: Case, backward: bool) -> Program:
    """The kernel that comes with JAX, with the best blocks; its segments hide the padding.

    Heads that share keys get copies of them.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    clips, heads, tokens, head_dim = case.compiled_shape
    padded, block = (CAUSAL_FLASH_BLOCKS if case.is_causal else FLASH_BLOCKS)[tokens]
    fields = [field.name for field in dataclasses.fields(flash.BlockSizes)]
    sizes = flash.BlockSizes(**{n: 1 if n == "block_b" else block for n in fields})
    group = heads // case.compiled_kv_heads

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if group > 1:
            k, v = (jnp.repeat(x, group, axis=1) for x in (k, v))
        ids = None
        if padded != tokens:
            hidden = (jnp.arange(padded) >= tokens).astype(jnp.int32)
            hidden = jnp.broadcast_to(hidden, (clips, padded))
            ids = flash.SegmentIds(hidden, hidden)
        return flash.flash_attention(
            q,
            k,
            v,
            segment_ids=ids,
            causal=case.is_causal,
            sm_scale=head_dim**-0.5,
            block_sizes=sizes,
        )

    return _differentiated(forward, case, padded, backward)


def xla(case: Case, backward: bool) -> Program:
    """Products and softmax as XLA compiles them, all scores in memory.

    All clips of a device are compiled: those of few would stay in fast memory.
    """
    import jax
    import jax.numpy as jnp

    _, _, tokens, head_dim = case.compiled_shape

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        shape, exact = q.shape, jnp.float32
        q = q.reshape(shape[0], k.shape[1], -1, *shape[2:])
        scores = jnp.einsum("bkgnd,bkmd->bkgnm", q, k, preferred_element_type=exact)
        scores = scores * head_dim**-0.5
        if case.is_causal:
            place = jnp.arange(tokens)
            scores = jnp.where(place <= place[:, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1)
        out = jnp.einsum("bkgnm,bkmd->bkgnd", weights.astype(q.dtype), v)
        return out.reshape(shape)

    return _differentiated(forward, case, tokens, backward)


def _differentiated(
    forward: Callable[..., Any], case: Case, tokens: int, backward: bool
) -> Program:
    """Of [clips, heads, tokens, channels], of more tokens than the case's where it is padded."""
    import jax

    clips, heads, _, head_dim = case.compiled_shape
    queries: ArrayShape = (clips, heads, tokens, head_dim), "bfloat16"
    keys: ArrayShape = (clips, case.compiled_kv_heads, tokens, head_dim), "bfloat16"
    shapes = [queries, keys, keys]

    def both(q: Any, k: Any, v: Any, d_out: Any) -> Any:
        out, pull_back = jax.vjp(forward, q, k, v)
        return out, pull_back(d_out)

    return (both, [*shapes, queries]) if backward else (forward, shapes)


PROGRAMS: dict[str, Callable[[Case, bool], Program]] = {
    "pallas_tpu": pallas_tpu,
    "jax_flash": jax_flash,
    "xla": xla,
}
