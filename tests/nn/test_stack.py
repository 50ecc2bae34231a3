import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.kernels.attention import request
from internvideo_jax.nn.blocks import PreNormBlock
from internvideo_jax.nn.int8 import LARGEST, STATISTICS
from internvideo_jax.nn.stack import Layer, stack, unstack

DEPTH = 4
POLICIES = ("full", "dots", "attention")


@dataclasses.dataclass(frozen=True)
class Config:
    num_heads: int = 2
    mlp_dim: int = 32
    norm: str = "rmsnorm"
    norm_epsilon: float = 1e-6
    activation: str = "gelu_tanh"
    qkv_bias: bool = False
    qk_norm: bool = True
    layer_scale_init: float | None = 0.5
    dtype: str = "float32"


class Stack(nn.Module):
    options: tuple[tuple[str, Any], ...] = ()
    config: Config = Config()

    @nn.compact
    def __call__(self, x):
        return stack(PreNormBlock, self.config, x, **{"depth": DEPTH, **dict(self.options)})


def module(config=None, **options):
    return Stack(tuple(options.items()), config or Config())


class Spans(nn.Module):
    """The layers in two spans over one set of parameters."""

    unroll: bool = False

    @nn.compact
    def __call__(self, x):
        block = PreNormBlock(Config(), True, name="blocks")
        options = {"depth": DEPTH, "unroll": self.unroll}
        first = stack(block, Config(), x, span=(0, 3), hidden_layers=(1,), **options)
        last = stack(block, Config(), first.x, span=(3, 4), hidden_layers=(3,), **options)
        return last._replace(hidden_states=jnp.concatenate([first[1], last.hidden_states]))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(1), (2, 5, 16))


@pytest.fixture(scope="module")
def variables(tokens):
    return nn.unbox(jax.jit(module().init)(jax.random.key(0), tokens))


def first_layers(variables, depth):
    return jax.tree.map(lambda p: p[:depth], variables)


def results(module, variables, tokens):
    """Output, hidden states and gradients."""

    @jax.jit
    def run(variables):
        def loss(variables):
            out = module.apply(variables, tokens)
            return (out.x**2).sum() + (out.hidden_states**3).sum(), out[:2]

        return jax.value_and_grad(loss, has_aux=True)(variables)

    (_, out), gradients = run(variables)
    return out, gradients


@pytest.fixture(scope="module")
def plain(tokens, variables):
    return results(module(hidden_layers=(1, 3)), variables, tokens)


@pytest.mark.parametrize(
    "other",
    [
        module(remat="full", hidden_layers=(1, 3)),
        module(remat="attention", hidden_layers=(1, 3)),
        module(remat=jax.checkpoint_policies.everything_saveable, hidden_layers=(1, 3)),
        module(unroll=True, remat="dots", hidden_layers=(1, 3)),
        Spans(),
        Spans(unroll=True),
    ],
    ids=["full", "attention", "policy", "unrolled-dots", "spans", "unrolled-spans"],
)
def test_the_numbers_do_not_depend_on_how_the_layers_run(tokens, variables, plain, other):
    want, gradients = plain
    got, other_gradients = results(other, variables, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, other_gradients, gradients)


@pytest.mark.parametrize("other", [module(unroll=True, hidden_layers=(1, 3)), Spans()])
def test_parameters_do_not_depend_on_how_the_layers_run(tokens, variables, other):
    shapes = nn.unbox(jax.eval_shape(other.init, jax.random.key(0), tokens))
    want = jax.eval_shape(lambda: variables)
    assert shapes == want


@pytest.mark.parametrize("options", [{}, {"remat": "full"}, {"unroll": True}])
def test_what_layers_measure_is_stacked_however_they_run(tokens, variables, options):
    measure = jax.jit(lambda v: module(**options).apply(v, tokens, mutable=[STATISTICS]))
    (out, _, _), found = measure(variables)
    np.testing.assert_allclose(out, module().apply(variables, tokens).x, rtol=1e-5, atol=1e-5)
    largest = found[STATISTICS]["blocks"]["attn"]["proj"][LARGEST]
    assert largest.shape == (DEPTH, 2, 8)
    shorter = {"params": {"blocks": first_layers(variables["params"]["blocks"], 2)}}
    _, of_shorter = module(depth=2, **options).apply(shorter, tokens, mutable=[STATISTICS])
    wanted = of_shorter[STATISTICS]["blocks"]["attn"]["proj"][LARGEST]
    np.testing.assert_allclose(largest[:2], wanted, rtol=1e-5)


def test_unrolled_layers_read_a_buffer_each(tokens, variables):
    split = {"params": {"blocks": unstack(variables["params"]["blocks"], DEPTH)}}
    forward = jax.jit(module(unroll=True).apply)

    def slices(variables):
        return forward.lower(variables, tokens).as_text().count("stablehlo.slice")

    assert slices(split) < slices(variables)
    got, want = forward(split, tokens).x, forward(variables, tokens).x
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_hidden_states_are_the_outputs_of_shorter_stacks(tokens, variables):
    wanted = (0, 2, 3)
    out, hidden, _ = jax.jit(module(hidden_layers=wanted).apply)(variables, tokens)
    for state, layer in zip(hidden, wanted, strict=True):
        short = module(depth=layer + 1)
        got = jax.jit(short.apply)(first_layers(variables, layer + 1), tokens)
        assert got.hidden_states.shape == (0, 2, 5, 16)
        np.testing.assert_allclose(state, got.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(hidden[-1], out)


class Counter(nn.Module):
    """Adds its weight, its cache and what is shared; counts its calls in the cache."""

    config: None
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, layer: Layer, shared: jax.Array) -> Any:
        init = nn.with_partitioning(nn.initializers.normal(1.0), ("embed",))
        x = x * 2 + self.param("weight", init, (x.shape[-1],)) + shared["bias"]
        if layer.cache is None:
            return x
        return x + layer.cache["seen"], {"seen": layer.cache["seen"] + layer.index}


class CounterStack(nn.Module):
    unroll: bool = False

    @nn.compact
    def __call__(self, x, cache=None, bias=0.0):
        span = None if cache is None else (1, 3)
        shared = {"bias": jnp.asarray(bias)}
        return stack(Counter, None, x, shared, depth=3, span=span, cache=cache, unroll=self.unroll)


def test_each_layer_has_its_cache_and_all_see_what_is_shared(tokens):
    variables = nn.unbox(CounterStack().init(jax.random.key(0), tokens))
    cache = {"seen": jnp.array([10.0, 20.0])}
    per_layer = tuple({"seen": seen} for seen in cache["seen"])
    scanned = CounterStack().apply(variables, tokens, cache, 7.0)
    unrolled = CounterStack(unroll=True).apply(variables, tokens, per_layer, 7.0)
    weight = variables["params"]["blocks"]["weight"]
    want = (tokens * 2 + weight[1] + 17) * 2 + weight[2] + 27
    np.testing.assert_allclose(scanned.x, want, rtol=1e-6)
    np.testing.assert_allclose(unrolled.x, want, rtol=1e-6)
    np.testing.assert_array_equal(scanned.cache["seen"], [11, 22])
    np.testing.assert_array_equal([layer["seen"] for layer in unrolled.cache], [11, 22])


def saved_arrays(module, variables, tokens):
    """Shapes and dtypes of what the backward pass keeps."""

    def loss(params):
        out = module.apply({"params": params}, tokens)
        return out.x.astype(jnp.float32).sum() + out.hidden_states.astype(jnp.float32).sum()

    pullback = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], variables["params"])
    return jax.tree.leaves(pullback)


def test_remat_does_not_save_the_hidden_state_buffer(tokens, variables):
    """Residuals of the backward pass must not grow with layers times hidden states."""

    def saved_bytes(hidden_layers):
        arrays = saved_arrays(module(remat="full", hidden_layers=hidden_layers), variables, tokens)
        return sum(x.size * x.dtype.itemsize for x in arrays)

    assert saved_bytes((0, 1, 3)) - saved_bytes(()) < 3 * tokens.nbytes


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_a_half_precision_block_saves_no_float32_activation(norm, monkeypatch):
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", "xla_chunked")
    tokens = jnp.zeros((3, 37, 16), jnp.bfloat16)
    stack = module(Config(norm=norm, dtype="bfloat16"))
    variables = nn.unbox(jax.eval_shape(stack.init, jax.random.key(0), tokens))
    saved = saved_arrays(stack, variables, tokens)
    activations = [x for x in saved if 37 in x.shape and x.size >= DEPTH * tokens.size]
    assert {x.dtype for x in activations} == {jnp.dtype("bfloat16")}
    # In units of the residual stream: x, norm1, qkv (3), q and k normalised (2), the op's output
    # and its branch, the sum, norm2, the MLP's two (2 each) and its branch.
    per_layer = sum(x.size for x in activations) / tokens.size / DEPTH
    assert per_layer <= 17, [x.shape for x in activations]


@pytest.mark.parametrize(
    ("implementation", "kept"),
    [("xla_chunked", 1 + 1 / 8), ("pallas_tpu", 1 + 1 / 8), ("xla_heads", 1)],
)
def test_the_attention_policy_keeps_products_and_what_attention_leaves(
    monkeypatch, implementation, kept
):
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", implementation)
    tokens = jnp.zeros((3, 37, 16), jnp.bfloat16)

    def saved(remat):
        stack = module(Config(dtype="bfloat16"), remat=remat)
        variables = nn.unbox(jax.eval_shape(stack.init, jax.random.key(0), tokens))
        arrays = saved_arrays(stack, variables, tokens)
        return [x for x in arrays if 37 in x.shape and x.ndim > 3]

    units = {remat: sum(x.size for x in saved(remat)) / tokens.size / DEPTH for remat in POLICIES}
    # The block's input; then qkv (3), proj, fc1 (2), fc2; then out and perhaps one lse per head of
    # 8.
    assert units == {"full": 1, "dots": 8, "attention": 8 + kept}


@pytest.mark.parametrize(
    ("remat", "forwards"), [("none", 1), ("full", 2), ("dots", 2), ("attention", 1)]
)
def test_attention_runs_once_where_a_policy_keeps_its_results(monkeypatch, remat, forwards):
    """Counted in the program for a CUDA device."""
    monkeypatch.delenv("INTERNVIDEO_ATTENTION", raising=False)
    monkeypatch.setattr(request, "current_platform", lambda: "gpu")
    tokens = jax.ShapeDtypeStruct((2, 33, 16), jnp.bfloat16)
    stack = module(Config(dtype="bfloat16"), remat=remat)
    variables = nn.unbox(jax.eval_shape(stack.init, jax.random.key(0), tokens))

    def loss(variables, tokens):
        return stack.apply(variables, tokens).x.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss)).trace(variables, tokens)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"__cudnn\$(\w+)", text)
    assert calls.count("fmhaSoftmax") == forwards
    assert calls.count("fmhaSoftmaxBackward") == 1


def test_output_projections_start_smaller_with_depth():
    stack = module(Config(mlp_dim=128), depth=3)
    params = nn.unbox(jax.jit(stack.init)(jax.random.key(0), jnp.zeros((1, 2, 64))))["params"]
    for kernel in (params["blocks"]["attn"]["proj"], params["blocks"]["mlp"]["fc2"]):
        std = np.asarray(kernel["kernel"]).reshape(3, -1).std(1)
        np.testing.assert_allclose(std, 0.02 / np.sqrt([2, 4, 6]), rtol=0.1)


def test_drop_path_rate_grows_from_zero_and_draws_alike_unrolled(tokens, variables):
    """With rate 1 - tiny at the last block only the first block's branches surely survive."""
    short = first_layers(variables, 2)
    options = {"depth": 2, "hidden_layers": (0, 1)}
    dropped = {**options, "drop_path_rate": 0.999, "deterministic": False}
    rngs = {"dropout": jax.random.key(0)}
    hidden = module(**dropped).apply(short, tokens, rngs=rngs).hidden_states
    plain = module(**options).apply(short, tokens).hidden_states
    np.testing.assert_allclose(hidden[0], plain[0], rtol=1e-6)
    np.testing.assert_array_equal(hidden[1], hidden[0])
    assert not np.allclose(plain[1], plain[0])

    halved = {**dropped, "drop_path_rate": 0.5}
    scanned = module(**halved).apply(short, tokens, rngs=rngs)
    unrolled = module(**halved, unroll=True).apply(short, tokens, rngs=rngs)
    np.testing.assert_allclose(unrolled.x, scanned.x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"hidden_layers": layers} for layers in ((2, 1), (0, 0), (4,))]
    + [{"span": span} for span in ((2, 2), (-1, 2), (0, 5))],
)
def test_bad_layers_are_named(tokens, variables, options):
    with pytest.raises(ValueError, match=r"[\[(]0, 4\), found \("):
        module(**options).apply(variables, tokens)


def test_compute_dtype_reaches_every_activation(tokens, variables):
    half = module(Config(dtype="bfloat16"), hidden_layers=(3,))
    out, hidden, _ = half.apply(variables, tokens.astype(jnp.bfloat16))
    assert out.dtype == hidden.dtype == jnp.bfloat16
    full = module().apply(variables, tokens).x
    assert float(jnp.abs(out - full).max()) < 0.1
