import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.objectives import contrastive
from internvideo_jax.objectives.contrastive import contrastive_loss

IDS = np.array([4, 7, 4, 1, 9, 9, 9])


def embeddings(dtype=np.float32):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(len(IDS), 5)).astype(dtype) for _ in range(2))


def dense_loss(left, right, temperature, ids):
    left, right = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
    logits = jnp.matmul(left, right.T, precision="highest") / temperature
    targets = (ids[:, None] == ids[None]).astype(left.dtype)
    targets = targets / targets.sum(1, keepdims=True)
    rows = [(targets * jax.nn.log_softmax(x)).sum(1) for x in (logits, logits.T)]
    return -0.5 * (rows[0] + rows[1]).mean()


@pytest.mark.parametrize("chunk", [3, 1024])
def test_loss_and_gradients_are_those_of_all_pairs(chunk, monkeypatch):
    monkeypatch.setattr(contrastive, "CHUNK", chunk)
    with jax.enable_x64(True):
        inputs = (*embeddings(np.float64), np.float64(0.1))
        # Neither batch nor chunks are a multiple of one another: the last chunk is padded.
        actual, expected = (
            jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs, IDS)
            for loss in (lambda *x: contrastive_loss(*x), dense_loss)
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), *(actual, expected)
    )


def test_the_gradient_scale_is_not_the_temperatures():
    inputs = (*embeddings(), np.float32(0.1))

    def gradients(scale):
        def loss(*inputs):
            return contrastive_loss(*inputs, IDS, gradient_scale=scale)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)

    whole, part = gradients(1.0), gradients(0.25)
    np.testing.assert_allclose(part[0], 0.25 * whole[0], rtol=1e-6)
    np.testing.assert_allclose(part[1], 0.25 * whole[1], rtol=1e-6)
    np.testing.assert_array_equal(part[2], whole[2])


def test_similarities_of_all_pairs_are_nowhere_together():
    shape = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    program = jax.jit(jax.grad(contrastive_loss)).lower(
        shape, shape, jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((4096,), int)
    )
    assert "4096x1024x" in program.as_text()
    assert "4096x4096x" not in program.as_text()


def test_cosines_of_several_vectors_are_averaged():
    left, right = embeddings()
    several = np.stack([left, 3 * left], axis=1)
    np.testing.assert_allclose(
        contrastive_loss(several, right, np.float32(0.1), IDS),
        contrastive_loss(left, right, np.float32(0.1), IDS),
        rtol=1e-6,
    )
