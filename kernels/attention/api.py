"""The attention function of every tower, and the choice of its implementation."""

import contextlib
import contextvars
import logging
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from internvideo_jax.kernels.attention import (
    cudnn,
    pallas_tpu,
    reference,
    xla_chunked,
    xla_half,
    xla_heads,
)
from internvideo_jax.kernels.attention.masks import Dropout, Masks
from internvideo_jax.kernels.attention.pallas_tpu import table
from internvideo_jax.kernels.attention.request import (
    Operands,
    Request,
    current_platform,
    make_request,
)

_logger = logging.getLogger(__name__)

# In the order in which the first that serves is looked for. Each module has `supports(request)`,
# the reason why it cannot serve a request or None, and `attend(request, operands)`.
# The last one is chosen in `_tpu_default` alone.
_IMPLEMENTATIONS: dict[str, ModuleType] = {
    "cudnn": cudnn,
    "xla_half": xla_half,
    "xla_chunked": xla_chunked,
    "xla_heads": xla_heads,
    "reference": reference,
    "pallas_tpu": pallas_tpu,
}

_PREFERENCE = "INTERNVIDEO_ATTENTION"
_preferred: contextvars.ContextVar[str | None] = contextvars.ContextVar("preferred", default=None)

# Up to so many scores `reference` is the default. On CPU, counted per example: above, the forward
# pass of `xla_chunked` is faster (its gradients are from some 128 × 128 × 12 on). Elsewhere, over
# all examples: 512 MiB.
_CPU_SHORT = 2**14
_SHORT = 2**27
# The scores of fewer queries, such as a pooler's one, are few; fused kernels would compute those of
# 64 or 128.
_FEW_QUERIES = 32
# On a TPU, by the compiler's estimates of whole steps (docs/step_time.md). Up to so many scores
# `reference`: they fit into its fast memory. Above, on these generations, the kernels for at least
# so many queries and keys: they want tokens in multiples of 128 in memory, half as many again as
# 257. Else `xla_heads` for sequences of at most so many queries times keys, where one head's scores
# of all examples are at most so many (512 MiB).
_TPU_SHORT = 2**22
_KERNEL_CHIPS, _KERNEL_TOKENS = ("v5e", "v6e"), 384
_TPU_PAIRS = 2**21
_TPU_HEAD = 2**27


class Choice(NamedTuple):
    """Which implementation serves a request, and why that one."""

    name: str
    reason: str


def attention(
    q: Float[Array, "B N H D"],
    k: Float[Array, "B M Hkv D"],
    v: Float[Array, "B M Hkv D"],
    *,
    scale: float | None = None,
    bias: Float[Array, "#B #H N M"] | None = None,
    segment_ids: tuple[Int[Array, "B N"], Int[Array, "B M"]] | None = None,
    kv_lengths: Int[Array, " B"] | None = None,
    query_offset: int | Int[Array, ""] | Int[Array, " B"] = 0,
    is_causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    dropout_origin: tuple[int | Array, int | Array, int | Array] = (0, 0, 0),
    return_lse: bool = False,
    return_weights: bool = False,
    implementation: str | None = None,
) -> Any:
    """Softmax attention: softmax(scale · q kᵀ + bias, over the keys that may be seen) v.

    Scores, softmax and sums are in float32 whatever the dtype of q, k and v. A query that may see
    no key gets zeros, an lse of -inf, and zero gradients.

    Args:
      q: queries [B, N, H, D]; float32, bfloat16 or float16.
      k: keys [B, M, Hkv, D] of q's dtype, H a multiple of Hkv. Query head h uses key-value head
        h // (H / Hkv).
      v: values, like k.
      scale: a number; D ** -0.5 by default.
      bias: added to the scaled scores, [B or 1, H or 1, N, M], any float dtype. Has a gradient.
        Entries of -inf hide keys.
      segment_ids: integers [B, N] of the queries and [B, M] of the keys; a query sees the keys of
        its own segment.
      kv_lengths: integers [B]; only so many leading keys exist.
      query_offset: where query 0 lies among the keys, such as the length of a cache: a number, or
        integers [B]; read with `is_causal` only.
      is_causal: query n sees the keys up to n + query_offset.
      dropout_rate: probability in [0, 1) with which a weight is dropped; the rest is scaled up.
      dropout_rng: a JAX random key, required with dropout. What is dropped depends on the key and
        on the indices of example, head, query and key, not on the implementation.
      dropout_origin: the indices of example, head and query at which this call begins, if it
        computes a part of a larger one.
      return_lse: also return the log of the sum of the exponentials of the scores.
      return_weights: also return the weights after the softmax, before dropout.
      implementation: one of `available_implementations()`. By default chosen by platform, shape
        and options; the environment variable INTERNVIDEO_ATTENTION is a preference for that
        choice.

    Returns:
      out [B, N, H, D] in q's dtype, or a tuple of out, lse [B, H, N] if asked and weights
      [B, H, N, M] if asked; these are float32 and have gradients too.

    Raises:
      ValueError: shapes, dtypes or options do not fit, or the named implementation cannot serve.
    """
    offset = jnp.asarray(query_offset) if is_causal else None
    starts_at_zero = isinstance(query_offset, int) and query_offset == 0
    operands = Operands(q, k, v, bias, Masks(segment_ids, kv_lengths, offset))
    request = make_request(
        operands,
        scale=scale,
        is_causal=is_causal,
        starts_at_zero=starts_at_zero,
        dropout_rate=dropout_rate,
        return_lse=return_lse,
        return_weights=return_weights,
    )
    if request.dropout_rate:
        if dropout_rng is None:
            raise ValueError("expected a random key as dropout_rng with dropout, found None")
        seed = jax.random.bits(dropout_rng, (2,), jnp.uint32)
        origin = jnp.stack([jnp.asarray(index) for index in dropout_origin])
        operands = operands._replace(masks=operands.masks._replace(dropout=Dropout(seed, origin)))

    choice = select_implementation(request, implementation)
    _logger.debug("%s (%s) for %s", *choice, request)
    result = _IMPLEMENTATIONS[choice.name].attend(request, operands)
    extras = tuple(x for x in result[1:] if x is not None)
    return (result.out, *extras) if extras else result.out


@contextlib.contextmanager
def prefer(implementation: str) -> Iterator[None]:
    """Within, calls that are traced take this implementation if it can serve them.

    It goes before INTERNVIDEO_ATTENTION.
    """
    token = _preferred.set(implementation)
    try:
        yield
    finally:
        _preferred.reset(token)


def available_implementations() -> dict[str, str | None]:
    """The implementations by name, each with the reason why it cannot run here, or None."""
    plain = Request(
        batch=1,
        queries=1024,
        keys=1024,
        heads=1,
        kv_heads=1,
        head_dim=64,
        dtype="bfloat16",
        scale=0.125,
        platform=current_platform(),
    )
    return {name: module.supports(plain) for name, module in _IMPLEMENTATIONS.items()}


def select_implementation(request: Request, implementation: str | None = None) -> Choice:
    """Chooses the implementation for a request.

    Args:
      request: what is asked.
      implementation: the name of one that must serve; None to choose.

    Raises:
      ValueError: the name, or the preferred one, is unknown, or the named implementation cannot
        serve.
    """
    if implementation is not None:
        reason = _module("implementation", implementation).supports(request)
        if reason is None:
            return Choice(implementation, "named by the caller")
        raise ValueError(
            f"attention implementation {implementation!r} cannot serve this call: {reason};"
            f" the nearest that can is {_first_that_serves(request)!r}"
        )
    default = _default(request)
    by, preferred = "prefer", _preferred.get()
    if preferred is None:
        by, preferred = _PREFERENCE, os.environ.get(_PREFERENCE)
    if not preferred:
        return default
    reason = _module(by, preferred).supports(request)
    if reason is None:
        return Choice(preferred, f"preferred by {by}")
    return Choice(default.name, f"{by}={preferred} cannot serve: {reason}")


def _default(request: Request) -> Choice:
    of_platform = {"cpu": _cpu_default, "gpu": _gpu_default, "tpu": _tpu_default}
    return of_platform[request.platform](request)


def _cpu_default(request: Request) -> Choice:
    if request.heads * request.queries * request.keys <= _CPU_SHORT:
        return Choice("reference", "short")
    return Choice(_first_that_serves(request), "the first that can serve")


def _gpu_default(request: Request) -> Choice:
    aside = ""
    if request.queries >= _FEW_QUERIES:
        refusal = cudnn.supports(request)
        if refusal is None:
            return Choice("cudnn", "fused")
        aside = f"; cudnn cannot serve: {refusal}"
        if xla_half.supports(request) is None:
            return Choice("xla_half", f"short{aside}")
    if request.batch * request.heads * request.queries * request.keys <= _SHORT:
        return Choice("reference", f"short{aside}")
    return Choice(_first_that_serves(request), f"the first that can serve{aside}")


def _tpu_default(request: Request) -> Choice:
    pairs = request.queries * request.keys
    if request.batch * request.heads * pairs <= _TPU_SHORT or request.return_weights:
        return Choice("reference", "short")
    if _is_for_kernels(request) and pallas_tpu.supports(request) is None:
        return Choice("pallas_tpu", "the fastest by estimates; it has never run on a TPU")
    if pairs <= _TPU_PAIRS and request.batch * request.group * pairs <= _TPU_HEAD:
        return Choice("xla_heads", "short sequences")
    return Choice(_first_that_serves(request), "the first that can serve")


def _is_for_kernels(request: Request) -> bool:
    """Whether it is of the kind that estimates were made of."""
    is_long = min(request.queries, request.keys) >= _KERNEL_TOKENS
    is_estimated = request.dtype == "bfloat16" and (request.group == 1 or request.is_causal)
    return is_long and is_estimated and table.generation() in _KERNEL_CHIPS


def _first_that_serves(request: Request) -> str:
    return next(name for name, m in _IMPLEMENTATIONS.items() if m.supports(request) is None)


def _module(where: str, name: str) -> ModuleType:
    if name not in _IMPLEMENTATIONS:
        raise ValueError(
            f"{where}: expected an attention implementation of {', '.join(_IMPLEMENTATIONS)},"
            f" found {name!r}"
        )
    return _IMPLEMENTATIONS[name]
