"""One transformer stack for every tower: blocks of any class, run by a scan or unrolled."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import Blocks, CheckedConfig, Few, Size, Width
from internvideo_jax.kernels.attention.request import RESIDUALS
from internvideo_jax.nn.int8 import STATISTICS
from internvideo_jax.nn.linear import Dtype

Remat = Literal["none", "full", "dots", "attention"]
# What the backward pass need not compute again, as `jax.checkpoint` takes it.
Policy = Callable[..., bool]

_PRODUCTS: Policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_POLICIES: dict[str, Policy | None] = {
    "full": None,
    "dots": _PRODUCTS,
    "attention": jax.checkpoint_policies.save_from_both_policies(
        _PRODUCTS, jax.checkpoint_policies.save_only_these_names(RESIDUALS)
    ),
}


@dataclasses.dataclass(frozen=True)
class StackConfig(CheckedConfig):
    """What the configs of all stacks have.

    Attributes:
      width: D, the token width.
      depth: number of blocks.
      num_heads: attention heads; of queries, where keys and values have fewer.
      mlp_dim: hidden size of the MLPs.
      remat: what the backward pass recomputes: nothing, whole blocks, all but products ("dots"), or
        all but products and fused attention.
      dtype: compute dtype.
    """

    width: Width
    depth: Blocks
    num_heads: Few
    mlp_dim: Size
    remat: Remat = "none"
    dtype: Dtype = "float32"

    @property
    def least_parameters(self) -> int:
        """So many parameters the stack has at least: two matrices of each block's MLP."""
        return 2 * self.depth * self.width * self.mlp_dim


@flax.struct.dataclass
class Layer:
    """What a block is told of its layer.

    Attributes:
      index: the layer's place in the whole stack, int32 [].
      drop_path_rate: its stochastic depth, float32 []; None where nothing is dropped.
      cache: its slice of the cache, a pytree; None where there is no cache.
    """

    index: jax.Array
    drop_path_rate: jax.Array | None
    cache: Any


class Stacked(NamedTuple):
    """What a stack returns.

    Attributes:
      x: output of the last layer that ran `[B, N, D]`.
      hidden_states: outputs of the wanted layers `[K, B, N, D]`; K may be 0.
      cache: the cache after this call, in the form in which it was given.
    """

    x: jax.Array
    hidden_states: jax.Array
    cache: Any


def stack(
    block_cls: type[nn.Module] | nn.Module,
    config: Any,
    x: jax.Array,
    shared: Any = None,
    *,
    depth: int,
    name: str = "blocks",
    remat: Remat | Policy = "none",
    hidden_layers: tuple[int, ...] = (),
    span: tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    cache: Any = None,
    unroll: bool = False,
    deterministic: bool = True,
) -> Stacked:
    """Runs layers of a stack on tokens; call it inside a compact method.

    Parameters are stacked on a leading `layers` axis however the layers run, so their layout
    depends neither on `unroll` nor on what is returned; nor does that of the `nn.int8.STATISTICS`,
    which layers leave where that collection is mutable. A scan compiles 48 layers like two. On a
    CPU it copies each layer's weights out of the stack, which makes decoding 1.6 to 2.9 times
    slower: there, unroll over parameters that `unstack` has split into a buffer per layer.

    Args:
      block_cls: module class built as `block_cls(config, deterministic)`, whose
        `__call__(x, layer: Layer, shared)` returns the new x, or (x, cache) where `layer.cache` is
        not None; it may differ between layers by `layer` alone. To run the same parameters twice,
        as two spans, give both calls one `block_cls(config, deterministic, name=name)` instead.
      config: the block's config.
      x: tokens `[B, N, D]`.
      shared: pytree of arrays that every layer gets as they are.
      depth: number of layers that have parameters.
      name: the stack's name among the parameters.
      remat: what the backward pass recomputes: nothing ("none"), whole blocks ("full"), all but the
        linear layers' products ("dots"), all but these and what a fused attention leaves to its
        gradient ("attention"); or a policy of `jax.checkpoint`.
      hidden_layers: ascending indices, within the whole stack, of the layers whose outputs are
        wanted.
      span: first layer to run and the one after the last; all by default.
      drop_path_rate: stochastic depth of the last layer; rates grow linearly from 0 at the first.
      cache: pytree with a leading axis of the span's length, or, unrolled, a sequence of one pytree
        per layer of the span; a call of `init` leaves it as it is.
      unroll: run a Python loop instead of a scan.
      deterministic: False turns on drop path and the block's own dropout (RNG `dropout`).

    Raises:
      ValueError: a span outside the stack, or `hidden_layers` that are not distinct, ascending
        indices of layers that run.
    """
    start, stop = span or (0, depth)
    if not 0 <= start < stop <= depth:
        raise ValueError(
            f"expected a span of layers within (0, {depth}), found {span}; name the first layer to"
            " run and the one after the last"
        )
    if list(hidden_layers) != sorted({i for i in hidden_layers if start <= i < stop}):
        raise ValueError(
            f"expected ascending, distinct block indices in [{start}, {stop}), found"
            f" {hidden_layers}; name the layers you want in that form"
        )
    block: Any = block_cls
    if isinstance(block_cls, type):
        block = block_cls(config, deterministic, name=name)
    rates = None
    if drop_path_rate > 0 and not deterministic:
        rates = jnp.linspace(0, drop_path_rate, depth, dtype=jnp.float32)
    x = _constrain(x)

    if block.is_initializing():
        x = _initialize(block, x, Layer(jnp.arange(depth), rates, None), shared)
        return Stacked(x, jnp.zeros((len(hidden_layers), *x.shape), x.dtype), cache)

    measured = [STATISTICS] if block.is_mutable_collection(STATISTICS) else []
    params = nn.unbox(block.variables["params"])
    rngs = _split_rngs(block, depth)
    layers = (rngs, Layer(jnp.arange(depth), rates, None))
    body = block.clone(parent=None, name=None)

    def run(params: Any, rngs: Any, x: jax.Array, layer: Layer, shared: Any) -> tuple[Any, Any]:
        """The new x; then the new cache and what was measured."""
        variables = {"params": params}
        out, found = body.apply(variables, x, layer, shared, rngs=rngs, mutable=measured)
        x, new_cache = (out, None) if layer.cache is None else out
        return x, (new_cache, found)

    forward = run
    if remat != "none":
        policy = _POLICIES[remat] if isinstance(remat, str) else remat
        # Within a scan nothing could merge the recomputation with the forward pass.
        forward = jax.checkpoint(run, policy=policy, prevent_cse=unroll)

    if unroll:
        hidden, caches, measurements = [], [], []
        for i in range(start, stop):
            weights = params[str(i)] if str(i) in params else _at(params, i)
            rng, layer = _at(layers, i)
            layer = dataclasses.replace(layer, cache=None if cache is None else cache[i - start])
            x, (new_cache, found) = forward(weights, rng, x, layer, shared)
            x = _constrain(x)
            caches.append(new_cache)
            measurements.append(found)
            if i in hidden_layers:
                hidden.append(x)
        buffer = jnp.stack(hidden) if hidden else jnp.zeros((0, *x.shape), x.dtype)
        _put(block, jax.tree.map(lambda *of_layers: jnp.stack(of_layers), *measurements))
        return Stacked(x, buffer, None if cache is None else tuple(caches))

    if span is not None:
        params, layers = jax.tree.map(lambda a: a[start:stop], (params, layers))
    rngs, layer = layers
    slots = np.full(depth, -1, np.int32)
    slots[list(hidden_layers)] = np.arange(len(hidden_layers))

    def scan_body(carry: Any, xs: Any) -> tuple[Any, Any]:
        """Only the block itself is under remat: the buffer must not be one of its saved inputs."""
        (x, buffer), (params, rng, layer, slot) = carry, xs
        x, rest = forward(params, rng, x, layer, shared)
        x = _constrain(x)
        if buffer.size:
            place = jnp.maximum(slot, 0)
            current = jax.lax.dynamic_index_in_dim(buffer, place, keepdims=False)
            update = jnp.where(slot >= 0, x, current)
            buffer = jax.lax.dynamic_update_index_in_dim(buffer, update, place, 0)
        return (x, buffer), rest

    buffer = jnp.zeros((len(hidden_layers), *x.shape), x.dtype)
    xs = (params, rngs, dataclasses.replace(layer, cache=cache), jnp.asarray(slots[start:stop]))
    (x, buffer), (cache, statistics) = jax.lax.scan(scan_body, (x, buffer), xs)
    _put(block, statistics)
    return Stacked(x, buffer, cache)


def unstack(params: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """A stack's parameters with a buffer per layer, for `stack(..., unroll=True)`.

    Args:
      params: parameters below the stack's name, leaves `[depth, ...]`.
      depth: number of layers.
    """
    return {str(i): _at(params, i) for i in range(depth)}


def _initialize(block: nn.Module, x: jax.Array, layers: Layer, shared: Any) -> jax.Array:
    """Creates the parameters of all layers; returns the last one's output."""

    def body(block: Any, x: jax.Array, layer: Layer, shared: Any) -> tuple[jax.Array, None]:
        return block(x, layer, shared), None

    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        metadata_params={nn.PARTITION_NAME: "layers"},
        # Nothing is broadcast that a second trace would have to look for.
        check_constancy_invariants=False,
    )
    x, _ = scan(block, x, layers, shared)
    return x


def _put(block: nn.Module, statistics: Mapping[str, Any]) -> None:
    """Leaves what was measured of the layers, `[depth, ...]`, with the stack."""
    for name, value in statistics.get(STATISTICS, {}).items():
        block.put_variable(STATISTICS, name, value)


def _split_rngs(block: nn.Module, depth: int) -> dict[str, Any]:
    """The block's random streams, each split over the layers as `nn.scan` would."""
    assert block.scope is not None
    return {
        name: jax.tree.map(lambda key: jax.random.split(key, depth), rng)
        for name, rng in block.scope.rngs.items()
    }


def _at(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda a: a[index], tree)


def _constrain(x: jax.Array) -> jax.Array:
    return nn.with_logical_constraint(x, ("batch", "tokens", "embed_act"))
