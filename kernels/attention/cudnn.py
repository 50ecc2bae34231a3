"""Attention by cuDNN's fused kernels, on NVIDIA GPUs.

JAX's public function for them refuses gradients at odd lengths, since it takes the placeholder of a
bias for a bias; cuDNN computes them. So the two primitives below that function are called here,
which are no public part of JAX. A version of JAX that has them in another form gets the public
function, and odd lengths one token of padding that lengths hide, which takes 7 to 53 % more time.
"""

import functools
import logging
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from internvideo_jax.kernels.attention.request import RESIDUALS, Operands, Request, Result

_logger = logging.getLogger(__name__)

_DTYPES = ("bfloat16", "float16")
_MAX_HEAD_DIM, _HEAD_DIM_MULTIPLE = 128, 8
# Ampere, the first generation with cuDNN's fused attention.
_LEAST_CAPABILITY = (8, 0)


def supports(request: Request) -> str | None:
    """The reason why a call cannot be served, or None."""
    if request.platform != "gpu":
        return f"it needs an NVIDIA GPU, found platform {request.platform!r}"
    options = {
        "a bias": request.bias_shape is not None,
        "segment_ids": request.has_segment_ids,
        "dropout": request.dropout_rate > 0,
        "return_lse": request.return_lse,
        "return_weights": request.return_weights,
    }
    for option, is_asked in options.items():
        if is_asked:
            return f"it does not take {option}"
    is_whole = request.starts_at_zero and request.queries == request.keys
    if request.is_causal and (request.has_kv_lengths or not is_whole):
        return "with is_causal it takes whole sequences without kv_lengths and offsets alone"
    if request.dtype not in _DTYPES:
        return f"it takes {' and '.join(_DTYPES)} alone, found {request.dtype}"
    if request.head_dim > _MAX_HEAD_DIM or request.head_dim % _HEAD_DIM_MULTIPLE:
        return (
            f"it takes head dims in multiples of {_HEAD_DIM_MULTIPLE} up to {_MAX_HEAD_DIM}, found"
            f" {request.head_dim}"
        )
    return _refusal_of_device()


def attend(request: Request, operands: Operands) -> Result:
    """Attention in one kernel. Has a gradient, but no forward-mode derivative.

    Args:
      request: what is asked.
      operands: the arrays.

    Returns:
      The result; its out has q's dtype.
    """
    q, k, v, _, masks = operands
    if masks.kv_lengths is None and _has_primitives():
        return Result(_attend(request.scale, request.is_causal, q, k, v))
    return Result(_attend_publicly(request, q, k, v, masks.kv_lengths))


def _refusal_of_device() -> str | None:
    """Why this machine's GPU cannot; None too where one is compiled for that is not there."""
    if jax.default_backend() != "gpu":
        return None
    device = jax.local_devices(backend="gpu")[0]
    # "8.0", or of other makers' a name such as "gfx942".
    major, _, minor = str(device.compute_capability).partition(".")
    if not (major.isdigit() and minor.isdigit()):
        return f"it needs an NVIDIA GPU, found {device.device_kind}"
    if (int(major), int(minor)) < _LEAST_CAPABILITY:
        least = ".".join(map(str, _LEAST_CAPABILITY))
        return (
            f"it needs a GPU of compute capability {least} (Ampere) or more, found {major}.{minor}"
            f" ({device.device_kind})"
        )
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    scale: float,
    is_causal: bool,
    q: Float[Array, "B N H D"],
    k: Float[Array, "B M Hkv D"],
    v: Float[Array, "B M Hkv D"],
) -> Float[Array, "B N H D"]:
    (out,) = _bind_forward(scale, is_causal, q, k, v, is_training=False)
    return out


def _attend_forward(
    scale: float, is_causal: bool, q: Array, k: Array, v: Array
) -> tuple[Array, tuple[Array, ...]]:
    results = _bind_forward(scale, is_causal, q, k, v, is_training=True)
    out, lse = (checkpoint_name(x, RESIDUALS) for x in results)
    return out, (q, k, v, out, lse)


def _attend_backward(
    scale: float, is_causal: bool, saved: tuple[Array, ...], d_out: Array
) -> tuple[Array, Array, Array]:
    q, k, v, out, lse = saved
    bind = _jax_cudnn()._dot_product_attention_bwd_p_wrapper.bind
    options = _options(scale, is_causal)
    dq, dk, dv = bind(q, k, v, *_unused(q), lse, out, d_out, **options)
    return dq, dk, dv


_attend.defvjp(_attend_forward, _attend_backward)


def _bind_forward(
    scale: float, is_causal: bool, q: Array, k: Array, v: Array, *, is_training: bool
) -> tuple[Array, ...]:
    """`[B, N, H, D]`, and in training lse `[B, H, N]` float32."""
    bind = _jax_cudnn()._dot_product_attention_fwd_p_wrapper.bind
    options = _options(scale, is_causal)
    return tuple(bind(q, k, v, *_unused(q), **options, is_training=is_training))


def _unused(q: Array) -> list[Array]:
    """Empty arrays for bias, lengths (2), offsets of packed sequences (2) and page tables (2)."""
    return [jnp.zeros(0, q.dtype)] * 7


def _options(scale: float, is_causal: bool) -> dict[str, Any]:
    module = _jax_cudnn()
    masks = module.MaskType
    return {
        "scale": scale,
        "seed": 42,  # of dropout, as JAX has it
        "dropout_rate": 0.0,
        # Whether there is a bias, and whether it has a gradient.
        "variadic_args": (False, False),
        "mask_type": masks.CAUSAL if is_causal else masks.NO_MASK,
        "layout": module.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }


def _jax_cudnn() -> ModuleType:
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo


@functools.cache
def _has_primitives() -> bool:
    """Whether this version of JAX has the primitives in the form that is known here."""
    shape = (1, 3, 1, 8)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def gradients(*qkv: Array) -> Any:
        out, pull_back = jax.vjp(functools.partial(_attend, 1.0, False), *qkv)
        return out, pull_back(out)

    try:
        out, found = jax.eval_shape(gradients, x, x, x)
    except Exception as error:
        # Whatever has become of them: there is another way, which says what it costs.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        reason = "" if {y.shape for y in (out, *found)} == {shape} else "results of other shapes"
    if reason:
        _logger.warning(
            "expected JAX %s to have the primitives of cuDNN's attention that this version of"
            " internvideo_jax knows, found %s; sequences of odd lengths are padded, which takes up"
            " to half as much time again: use a version of JAX from 0.10.2 on, or report this",
            jax.__version__,
            reason,
        )
    return not reason


def _attend_publicly(
    request: Request, q: Array, k: Array, v: Array, kv_lengths: Int[Array, " B"] | None
) -> Float[Array, "B N H D"]:
    """By JAX's public function, odd lengths made even, as it demands under differentiation."""
    n, m = request.queries, request.keys
    query_lengths = key_lengths = None
    if n % 2 or m % 2 or kv_lengths is not None:
        seen = jnp.int32(m) if kv_lengths is None else kv_lengths.astype(jnp.int32)
        query_lengths = jnp.full(request.batch, n, jnp.int32)
        # At least one: an empty row's zeros are written below, so that none is divided by.
        key_lengths = jnp.broadcast_to(jnp.maximum(seen, 1), (request.batch,))
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=request.scale,
        is_causal=request.is_causal,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )[:, :n]
    if kv_lengths is not None:
        out = jnp.where((kv_lengths > 0)[:, None, None, None], out, 0)
    return out
