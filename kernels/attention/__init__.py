"""Attention: one function for every tower, several implementations behind it."""

from internvideo_jax.kernels.attention.api import (
    Choice,
    attention,
    available_implementations,
    prefer,
    select_implementation,
)
from internvideo_jax.kernels.attention.request import Request

__all__ = [
    "Choice",
    "Request",
    "attention",
    "available_implementations",
    "prefer",
    "select_implementation",
]
