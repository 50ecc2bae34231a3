import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.nn.transformer import TransformerConfig, drop_path, transformer

CONFIG = TransformerConfig(width=16, depth=4, num_heads=2, mlp_dim=32, layer_scale_init=0.5)


class Stack(nn.Module):
    config: TransformerConfig
    hidden_layers: tuple[int, ...] = ()
    deterministic: bool = True

    @nn.compact
    def __call__(self, x):
        return transformer(
            self.config,
            x,
            hidden_layers=self.hidden_layers,
            deterministic=self.deterministic,
        )


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(1), (2, 5, 16))


@pytest.fixture(scope="module")
def variables(tokens):
    return nn.unbox(jax.jit(Stack(CONFIG).init)(jax.random.key(0), tokens))


def first_layers(variables, depth):
    return jax.tree.map(lambda p: p[:depth], variables)


def test_hidden_states_are_the_outputs_of_shorter_stacks(tokens, variables):
    wanted = (0, 2, 3)
    out, hidden = jax.jit(Stack(CONFIG, wanted).apply)(variables, tokens)
    for state, layer in zip(hidden, wanted, strict=True):
        config = dataclasses.replace(CONFIG, depth=layer + 1)
        short, none = jax.jit(Stack(config).apply)(first_layers(variables, layer + 1), tokens)
        assert none.shape == (0, 2, 5, 16)
        np.testing.assert_allclose(state, short, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(hidden[-1], out)


def test_parameters_do_not_depend_on_what_is_returned(tokens, variables):
    other = nn.unbox(jax.jit(Stack(CONFIG, (1, 3)).init)(jax.random.key(0), tokens))
    jax.tree.map(np.testing.assert_array_equal, variables, other)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(tokens, variables, remat):
    def loss(params, config):
        out, hidden = Stack(config, (1,)).apply({"params": params}, tokens)
        return (out**2).sum() + (hidden**3).sum()

    plain = jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], CONFIG)
    config = dataclasses.replace(CONFIG, remat=remat)
    other = jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), plain, other)


def test_remat_does_not_save_the_hidden_state_buffer(tokens, variables):
    """Residuals of the backward pass must not grow with layers times hidden states."""
    config = dataclasses.replace(CONFIG, remat="full")

    def saved_bytes(hidden_layers):
        def loss(params):
            out, hidden = Stack(config, hidden_layers).apply({"params": params}, tokens)
            return out.sum() + hidden.sum()

        pullback = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], variables["params"])
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))

    buffer = 3 * tokens.nbytes
    assert saved_bytes((0, 1, 3)) - saved_bytes(()) < buffer


def test_output_projections_start_smaller_with_depth():
    config = dataclasses.replace(CONFIG, width=64, depth=3, mlp_dim=128)
    params = nn.unbox(jax.jit(Stack(config).init)(jax.random.key(0), jnp.zeros((1, 2, 64))))[
        "params"
    ]
    for kernel in (params["blocks"]["attn"]["proj"], params["blocks"]["mlp"]["fc2"]):
        std = np.asarray(kernel["kernel"]).reshape(3, -1).std(1)
        np.testing.assert_allclose(std, 0.02 / np.sqrt([2, 4, 6]), rtol=0.1)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 3))
    out = np.asarray(drop_path(x, jnp.float32(0.25), jax.random.key(0)))
    assert set(np.unique(out.round(4))) == {0.0, np.float32(1.3333)}
    assert (out == out[:, :1]).all()
    assert abs(out.mean() - 1) < 0.05


def test_drop_path_rate_grows_from_zero(tokens, variables):
    """With rate 1 - tiny at the last block only the first block's branches surely survive."""
    config = dataclasses.replace(CONFIG, depth=2, drop_path_rate=0.999)
    short = first_layers(variables, 2)
    _, hidden = Stack(config, (0, 1), deterministic=False).apply(
        short, tokens, rngs={"dropout": jax.random.key(0)}
    )
    _, plain = Stack(config, (0, 1)).apply(short, tokens)
    np.testing.assert_allclose(hidden[0], plain[0], rtol=1e-6)
    np.testing.assert_array_equal(hidden[1], hidden[0])
    assert not np.allclose(plain[1], plain[0])


@pytest.mark.parametrize("layers", [(2, 1), (0, 0), (4,), (-1,)])
def test_bad_hidden_layers_are_named(tokens, variables, layers):
    with pytest.raises(ValueError, match=r"ascending, distinct block indices in \[0, 4\)"):
        Stack(CONFIG, layers).apply(variables, tokens)


def test_compute_dtype_reaches_every_activation(tokens, variables):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    out, hidden = Stack(config, (3,)).apply(variables, tokens.astype(jnp.bfloat16))
    assert out.dtype == hidden.dtype == jnp.bfloat16
    full, _ = Stack(CONFIG).apply(variables, tokens)
    assert float(jnp.abs(out - full).max()) < 0.1
