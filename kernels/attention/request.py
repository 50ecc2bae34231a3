"""What one attention call asks for, in the form that every implementation receives it."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from internvideo_jax.kernels.attention.masks import Masks

_DTYPES = ("float32", "bfloat16", "float16")
# What a forward pass leaves to its backward pass has this name (`checkpoint_name`), by which remat
# policies may keep it.
RESIDUALS = "attention_residuals"


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
      starts_at_zero: whether it is known while tracing that query 0 is the first token.
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
    starts_at_zero: bool = False
    dropout_rate: float = 0.0
    return_lse: bool = False
    return_weights: bool = False

    @property
    def group(self) -> int:
        """How many query heads share one key-value head."""
        return self.heads // self.kv_heads


class Operands(NamedTuple):
    """The arrays of a call; no bias is None."""

    q: Float[Array, "B N H D"]
    k: Float[Array, "B M Hkv D"]
    v: Float[Array, "B M Hkv D"]
    bias: Float[Array, "#B #H N M"] | None
    masks: Masks


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
        default = jax.config.jax_default_device  # type: ignore[attr-defined]
        platform = default if isinstance(default, str) else getattr(default, "platform", None)
    platform = platform or jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform


def make_request(
    operands: Operands,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    starts_at_zero: bool = False,
    dropout_rate: float = 0.0,
    return_lse: bool = False,
    return_weights: bool = False,
) -> Request:
    """The request that some operands and options make.

    Raises:
      ValueError: shapes, dtypes or options do not fit together.
    """
    q, k, v, bias, (segment_ids, kv_lengths, query_offset, _) = operands
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or 0 in x.shape:
            axes = "[B, N, H, D]" if name == "q" else "[B, M, Hkv, D]"
            raise ValueError(f"expected {name} as {axes} without empty axes, found {x.shape}")
        if x.dtype != q.dtype or q.dtype.name not in _DTYPES:
            raise ValueError(
                f"expected q, k and v of one dtype of {', '.join(_DTYPES)}, found {name} of"
                f" {x.dtype} with q of {q.dtype}; cast them before"
            )
    b, n, h, d = q.shape
    m, kv_heads = k.shape[1:3]
    _expect_shape("k", k, (b, m, kv_heads, d), f"q is {q.shape}")
    _expect_shape("v", v, k.shape, "the shape of k")
    if h % kv_heads:
        raise ValueError(
            f"expected a number of query heads that the {kv_heads} key-value heads divide, found"
            f" {h}; k and v need 1 head, as many as q, or a divisor of that"
        )
    if bias is not None:
        if bias.ndim != 4 or bias.shape not in {(i, j, n, m) for i in (1, b) for j in (1, h)}:
            raise ValueError(
                f"expected bias as [B or 1, H or 1, N, M] with B={b}, H={h}, N={n}, M={m}, found"
                f" {bias.shape}"
            )
        if not jnp.issubdtype(bias.dtype, jnp.floating):
            raise ValueError(
                f"expected bias of a floating dtype, found {bias.dtype}; a mask of booleans"
                " becomes one by jnp.where(mask, 0.0, -jnp.inf)"
            )
    if segment_ids is not None:
        if len(segment_ids) != 2:
            raise ValueError(
                "expected segment_ids as a pair, of the queries and of the keys, found"
                f" {len(segment_ids)} items"
            )
        _expect_integers("segment_ids of the queries", segment_ids[0], (b, n))
        _expect_integers("segment_ids of the keys", segment_ids[1], (b, m))
    if kv_lengths is not None:
        _expect_integers("kv_lengths", kv_lengths, (b,))
    if query_offset is not None:
        _expect_integers("query_offset", query_offset, (b,) if query_offset.ndim else ())
    for name, number in (("scale", scale), ("dropout_rate", dropout_rate)):
        if isinstance(number, jax.Array):
            raise ValueError(
                f"expected {name} as a Python number, found {number.dtype}{list(number.shape)};"
                " it is part of the compiled program"
            )
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"expected dropout_rate in [0, 1), found {dropout_rate}")
    return Request(
        batch=b,
        queries=n,
        keys=m,
        heads=h,
        kv_heads=kv_heads,
        head_dim=d,
        dtype=q.dtype.name,
        scale=d**-0.5 if scale is None else float(scale),
        platform=current_platform(),
        bias_shape=None if bias is None else bias.shape,
        has_segment_ids=segment_ids is not None,
        has_kv_lengths=kv_lengths is not None,
        is_causal=is_causal,
        starts_at_zero=starts_at_zero,
        dropout_rate=float(dropout_rate),
        return_lse=return_lse,
        return_weights=return_weights,
    )


def _expect_shape(name: str, x: Array, shape: tuple[int, ...], why: str) -> None:
    if x.shape != shape:
        raise ValueError(f"expected {name} of shape {shape} ({why}), found {x.shape}")


def _expect_integers(name: str, x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"expected {name} as integers of shape {shape}, found {x.dtype} {x.shape}")
