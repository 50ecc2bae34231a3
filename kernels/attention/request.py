"""What one attention call asks for, in the form that every implementation receives it."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, UInt32


@dataclass(frozen=True)
class Request:
    """Everything about a call that is known while it is traced.

    Attributes:
      batch, queries, keys: B, N, M.
      heads, kv_heads: H and Hkv; H is a multiple of Hkv.
      head_dim: D.
      dtype: of q, k and v: "float32", "bfloat16" or "float16".
      scale: factor on q·k.
      platform: where the call will run: "cpu", "gpu" or "tpu".
      bias_shape: [B|1, H|1, N, M], None without a bias.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    scale: float
    platform: str
    bias_shape: tuple[int, ...] | None = None
    has_segment_ids: bool = False
    has_kv_lengths: bool = False
    is_causal: bool = False
    dropout_rate: float = 0.0
    return_lse: bool = False
    return_weights: bool = False

    @property
    def group(self) -> int:
        """How many query heads share one key-value head."""
        return self.heads // self.kv_heads


class Operands(NamedTuple):
    """The arrays of a call; None for what it does not use."""

    q: Float[Array, "B N H D"]
    k: Float[Array, "B M Hkv D"]
    v: Float[Array, "B M Hkv D"]
    bias: Float[Array, "#B #H N M"] | None = None
    segment_ids: tuple[Int[Array, "B N"], Int[Array, "B M"]] | None = None
    kv_lengths: Int[Array, "B"] | None = None
    query_offset: Int[Array, ""] | None = None
    dropout_seed: UInt32[Array, "2"] | None = None


class Result(NamedTuple):
    """What an implementation returns: lse and weights where the request asks for them."""

    out: Float[Array, "B N H D"]
    lse: Float[Array, "B H N"] | None = None
    weights: Float[Array, "B H N M"] | None = None


def current_platform() -> str:
    """The platform that code traced now is for: the current mesh's, else the default device's.

    Under `jax.set_mesh` of a TPU topology that is only described, this is "tpu" on any machine.
    """
    platform = None
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        platform = device.platform
    if platform is None:
        default = jax.config.jax_default_device
        platform = default if isinstance(default, str) else getattr(default, "platform", None)
    platform = platform or jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform
