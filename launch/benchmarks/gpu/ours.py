"""Our side of the comparison on a GPU, in a process of its own."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import from_dict
from internvideo_jax.kernels.attention import attention
from internvideo_jax.launch.benchmarks.gpu.cases import (
    Attention,
    Case,
    Encoder,
    Row,
    measured,
    milliseconds,
)
from internvideo_jax.launch.benchmarks.runner import OURS, say
from internvideo_jax.models import abstract_variables
from internvideo_jax.models.video_vit import VideoViT, VideoViTConfig
from internvideo_jax.nn.stack import Remat

# Without it products go to cuBLAS, which takes bias and GELU along; gradients got slower by that.
_CUBLAS = {"xla_gpu_enable_triton_gemm": False}
_REMATS: tuple[Remat, ...] = ("attention", "full", "none")
# Random numbers of the device's own generator, which compiles in no time.
_GENERATOR = "rbg"


class Measured(NamedTuple):
    """What the process has found.

    Attributes:
      chip: the device's name.
      rows: of all cases.
      shapes: of the encoder's parameters by their paths, for the peer.
    """

    chip: str
    rows: list[Row]
    shapes: dict[str, tuple[int, ...]]


def measure(
    cases: Sequence[Case], config: dict[str, Any], device: str, samples: int, limit_s: float
) -> Measured:
    """Times all cases.

    Args:
      cases: what.
      config: of the encoder.
      device: "gpu", or "cpu" for a rehearsal.
      samples: of each time.
      limit_s: no case is begun after that.

    Raises:
      ValueError: JAX has no such device.
    """
    from flax import traverse_util

    found = jax.default_backend()
    if found != device:
        raise ValueError(
            f"expected JAX to have a {device}, found {found}; install 'internvideo-jax[cuda]' and"
            " look at the driver, or --rehearse on the CPU"
        )
    encoder = from_dict(VideoViTConfig, config)
    tasks: list[tuple[Row, Callable[[], Row]]] = []
    for case in cases:
        if isinstance(case, Attention):
            row = Row(case, "ours", OURS)
            tasks.append((row, functools.partial(_attention, row, samples)))
            continue
        ways: dict[str, tuple[Remat, dict[str, Any]]] = {"": ("none", {})}
        if case.is_trained:
            ways = {f", remat={remat}": (remat, {}) for remat in _REMATS}
        elif device == "gpu":
            ways[", products by cuBLAS"] = ("none", _CUBLAS)
        for way, (remat, options) in ways.items():
            row = Row(case, "ours", OURS + way)
            model = VideoViT(dataclasses.replace(encoder, remat=remat, dtype="bfloat16"))
            tasks.append((row, functools.partial(_encoder, row, model, options, samples)))
    rows = list(measured(tasks, limit_s, say))
    variables = abstract_variables(VideoViT(encoder))["params"]
    shapes = {k: x.shape for k, x in traverse_util.flatten_dict(variables, sep="/").items()}
    return Measured(jax.local_devices()[0].device_kind, rows, shapes)


def _attention(row: Row, samples: int) -> Row:
    case = row.case
    assert isinstance(case, Attention)
    heads = (case.heads, case.kv_heads or case.heads, case.kv_heads or case.heads)
    keys = jax.random.split(jax.random.key(0, impl=_GENERATOR), 4)
    q, k, v = (
        jax.random.normal(key, (case.batch, case.tokens, h, case.head_dim), jnp.bfloat16)
        for key, h in zip(keys, heads, strict=False)
    )
    d_out = jax.random.normal(keys[3], q.shape, q.dtype)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out: jax.Array = attention(q, k, v, is_causal=case.is_causal)
        return out

    def gradients(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> Any:
        out, pull_back = jax.vjp(forward, q, k, v)
        return out, pull_back(d_out)

    def time(function: Any, *inputs: jax.Array) -> float:
        compiled = jax.jit(function)
        jax.block_until_ready(compiled(*inputs))
        return milliseconds(
            lambda: compiled(*inputs), jax.block_until_ready, is_short=True, samples=samples
        )

    row = row._replace(forward_ms=time(forward, q, k, v))
    if case.is_trained:
        row = row._replace(forward_backward_ms=time(gradients, q, k, v, d_out))
    return row


def _encoder(row: Row, model: VideoViT, options: dict[str, Any], samples: int) -> Row:
    case = row.case
    assert isinstance(case, Encoder)
    (example,) = model.example_inputs(case.batch)
    video = jax.random.normal(jax.random.key(1, impl=_GENERATOR), example.shape, jnp.bfloat16)
    kept = None
    if case.kept is not None:
        rng = np.random.default_rng(0)
        patches = np.arange(1, model.config.num_tokens)
        drawn = [rng.choice(patches, case.kept - 1, replace=False) for _ in range(case.batch)]
        kept = jnp.asarray(np.pad(np.sort(drawn), ((0, 0), (1, 0))))
    dtype = jnp.float32 if case.is_trained else jnp.bfloat16
    variables = jax.jit(lambda: _variables(model, dtype))()

    def forward(variables: Any, video: jax.Array, kept: jax.Array | None) -> Any:
        output: Any = model.apply(variables, video, kept)
        return output.tokens, output.pooled

    def gradients(variables: Any, video: jax.Array, kept: jax.Array | None) -> Any:
        def loss(variables: Any) -> jax.Array:
            tokens, pooled = forward(variables, video, kept)
            return _mean_square(tokens) + _mean_square(pooled)

        return jax.value_and_grad(loss)(variables)

    jitted = jax.jit(gradients if case.is_trained else forward)
    compiled = jitted.lower(variables, video, kept).compile(compiler_options=options or None)
    memory: Any = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    def run() -> Any:
        return compiled(variables, video, kept)

    jax.block_until_ready(run())
    ms = milliseconds(run, jax.block_until_ready, is_short=False, samples=samples)
    return row.timed(ms, peak / 1e9)


def _mean_square(x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(x.astype(jnp.float32)))


def _variables(model: VideoViT, dtype: Any) -> Any:
    """Normal numbers in place of all parameters: times do not depend on them."""
    leaves, tree = jax.tree.flatten(abstract_variables(model))
    keys = jax.random.split(jax.random.key(0, impl=_GENERATOR), len(leaves))
    drawn = zip(keys, leaves, strict=True)
    values = [0.02 * jax.random.normal(key, leaf.shape, dtype) for key, leaf in drawn]
    return jax.tree.unflatten(tree, values)
