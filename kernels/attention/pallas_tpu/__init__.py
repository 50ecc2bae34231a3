"""Attention for TPUs in Pallas: exact lengths, no padding of narrow heads, all keys resident.

Inside, an array of a head is [D, tokens]: tokens along the lanes of registers. Nothing is copied
where what comes before writes that layout, which the compiler does for projections if it is told.
On a CPU the kernels are interpreted: right, and far too slow for more than tests.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from internvideo_jax.kernels.attention.pallas_tpu.causal.plan import CausalPlan, make_causal_plan
from internvideo_jax.kernels.attention.pallas_tpu.plan import Plan, make_plan, round_up
from internvideo_jax.kernels.attention.request import RESIDUALS, Operands, Request, Result


def supports(request: Request) -> str | None:
    """The reason why a call cannot be served, or None."""
    refused = {
        "a bias": request.bias_shape is not None,
        "segment_ids": request.has_segment_ids,
        "kv_lengths": request.has_kv_lengths,
        "is_causal with an offset or more keys": request.is_causal and not _is_whole(request),
        "dropout": request.dropout_rate > 0,
        "return_weights": request.return_weights,
    }
    for option, is_asked in refused.items():
        if is_asked:
            return (
                f"{option} is not part of this kernel, whose only mask is that of causal"
                " self-attention from the first token on"
            )
    if request.platform == "gpu":
        return "needs a TPU, or a CPU that interprets it"
    if request.platform == "tpu" and _is_partitioned():
        return "the compiler cannot split a kernel over devices; call it under shard_map"
    if request.scale <= 0:
        return f"the scale must be above zero, found {request.scale}"
    if request.dtype == "float16":
        return "float16 is no type of a TPU's matrix unit; cast to bfloat16"
    try:
        plan_of(request, "forward")
        plan_of(request, "backward")
    except ValueError as error:
        return str(error)
    return None


def attend(request: Request, operands: Operands) -> Result:
    """Attention by the kernels. Has a gradient, but no forward-mode derivative.

    Args:
      request: what is asked.
      operands: the arrays.

    Returns:
      The result; its out has q's dtype, its lse is float32.
    """
    out, lse = _attend(request, operands.q, operands.k, operands.v)
    return Result(out=out, lse=lse if request.return_lse else None)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    request: Request, q: Array, k: Array, v: Array
) -> tuple[Float[Array, "B N H D"], Float[Array, "B H N"] | None]:
    return _attend_forward(request, q, k, v)[0]


def _attend_forward(
    request: Request, q: Array, k: Array, v: Array
) -> tuple[tuple[Array, Array | None], Any]:
    forward, _ = kernels_of(request)
    q, k, v = (_by_head(request, x) for x in (q, k, v))
    results = forward(plan_of(request, "forward"), q, k, v, _interpret(request))
    out, lse = (checkpoint_name(x, RESIDUALS) for x in results)
    natural = None
    if request.return_lse:
        natural = lse.reshape(request.batch, request.heads, request.queries) * math.log(2)
    return (_by_token(request, out), natural), (q, k, v, out, lse)


def _attend_backward(
    request: Request, saved: Any, cotangents: tuple[Array, Array | None]
) -> tuple[Array, Array, Array]:
    _, backward = kernels_of(request)
    q, k, v, out, lse = saved
    d_out, d_lse = cotangents
    d_out = _by_head(request, d_out)
    d_lse = None if d_lse is None else d_lse.reshape(lse.shape)
    plan = plan_of(request, "backward")
    dq, dk, dv = backward(plan, q, k, v, out, lse, d_out, d_lse, _interpret(request))
    if request.group > 1 and not request.is_causal:
        shape = (-1, request.group, *dk.shape[1:])
        dk, dv = (x.reshape(shape).sum(axis=1).astype(k.dtype) for x in (dk, dv))
    return _by_token(request, dq), _by_token(request, dk), _by_token(request, dv)


_attend.defvjp(_attend_forward, _attend_backward)


def plan_of(request: Request, name: str) -> Plan | CausalPlan:
    """How a pass, "forward" or "backward", of a call is cut.

    Raises:
      ValueError: no cut fits into the vector memory.
    """
    return make_causal_plan(request, name) if request.is_causal else make_plan(request, name)


def kernels_of(request: Request) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward and the backward pass that serve a call, with plans of its kind.

    Imported late: Pallas takes a good part of a second, which only those pay who use it.
    """
    if request.is_causal:
        from internvideo_jax.kernels.attention.pallas_tpu.causal import backward as causal_backward
        from internvideo_jax.kernels.attention.pallas_tpu.causal import forward as causal_forward

        return causal_forward.forward, causal_backward.backward
    from internvideo_jax.kernels.attention.pallas_tpu.backward import backward
    from internvideo_jax.kernels.attention.pallas_tpu.forward import forward

    return forward, backward


def _by_head(request: Request, x: Float[Array, "B T h D"]) -> Float[Array, "Bh D8 T"]:
    """By heads, tokens last, with D a multiple of 8."""
    b, t, h, d = x.shape
    if request.platform == "tpu":
        from jax.experimental.layout import Layout, with_layout_constraint

        # What makes the array writes it in this order, where it would be copied otherwise.
        x = with_layout_constraint(x, Layout(major_to_minor=(0, 2, 3, 1)))
    x = x.transpose(0, 2, 3, 1).reshape(b * h, d, t)
    return jnp.pad(x, ((0, 0), (0, round_up(d, 8) - d), (0, 0))) if d % 8 else x


def _by_token(request: Request, x: Float[Array, "Bh D8 T"]) -> Float[Array, "B T h D"]:
    x = x.reshape(request.batch, -1, *x.shape[1:])
    return x[:, :, : request.head_dim].transpose(0, 3, 1, 2)


def _is_whole(request: Request) -> bool:
    return request.starts_at_zero and request.queries == request.keys


def _is_partitioned() -> bool:
    """Whether code traced now is for several devices, and left to the compiler to split."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and set(mesh.manual_axes) != set(mesh.axis_names)


def _interpret(request: Request) -> bool:
    return request.platform != "tpu"
