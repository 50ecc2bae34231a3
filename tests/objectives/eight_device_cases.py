"""Checks that need eight devices; `test_eight_devices.py` runs them in a process that has them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.objectives.contrastive import contrastive_loss
from internvideo_jax.objectives.matching import draw_negatives, take_of_group
from internvideo_jax.parallel.hlo import collectives
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES

MESHES = [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
IDS = np.arange(48) * 7 % 40


def embeddings(dtype):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(len(IDS), 6)).astype(dtype) for _ in range(2))


def on_mesh(sizes, fn, *args):
    mesh = make_mesh(MeshConfig(**sizes))
    with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
        return jax.device_get(jax.jit(fn)(*args))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_contrast_and_its_gradients_are_those_of_one_device(sizes, dtype, tolerance):
    def run(*inputs):
        return jax.value_and_grad(contrastive_loss, argnums=(0, 1, 2))(*inputs, IDS)

    with jax.enable_x64(dtype == np.float64):
        inputs = (*embeddings(dtype), dtype(0.07))
        actual, expected = on_mesh(sizes, run, *inputs), jax.jit(lambda *x: run(*x))(*inputs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max()),
        actual,
        jax.device_get(expected),
    )


def test_a_device_compares_its_rows_alone():
    """Embeddings travel, similarities do not: no array of a device is of all pairs."""
    size, width = 4096, 8
    rows = jax.ShapeDtypeStruct((size, width), jnp.float32)
    others = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((size,), jnp.int32)
    with jax.set_mesh(make_mesh(MeshConfig(data=8))), nn.logical_axis_rules(DEFAULT_RULES):
        gradient = jax.jit(jax.grad(contrastive_loss, argnums=(0, 1)))
        compiled = gradient.lower(rows, rows, *others).compile()
    # All of the batch at a time would be 64 MiB, a device's rows with all of it 8 MiB.
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 2**20
    assert max(c.bytes for c in collectives(compiled.as_text())) <= size * width * 4


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("group", [3, 12, 24, 48])
def test_negatives_and_their_rows_are_those_of_one_device(sizes, group):
    """Groups of part of a device's rows, of all of them, and of those of several devices."""
    rows = len(IDS) // (8 if sizes == MESHES[0] else 4)
    if rows % group and group % rows:
        pytest.skip("groups that do not fit the devices")

    def run(media, text, tokens):
        negatives = draw_negatives(
            jax.random.key(0), media, text, jnp.float32(0.1), jnp.asarray(IDS), group
        )

        def taken(tokens):
            rows = take_of_group(tokens, negatives.media, group)
            return (rows * jnp.cos(jnp.arange(rows.size)).reshape(rows.shape)).sum()

        return negatives, jax.value_and_grad(taken)(tokens)

    tokens = np.random.default_rng(1).normal(size=(48, 5, 3)).astype(np.float32)
    inputs = (*embeddings(np.float32), tokens)
    actual, expected = on_mesh(sizes, run, *inputs), jax.jit(lambda *x: run(*x))(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), actual, expected)


@pytest.mark.parametrize(("group", "devices"), [(4, 1), (16, 2)])
def test_only_a_groups_own_rows_are_exchanged(group, devices):
    tokens = jax.ShapeDtypeStruct((64, 5, 3), jnp.float32)
    chosen = jax.ShapeDtypeStruct((64,), jnp.int32)
    with jax.set_mesh(make_mesh(MeshConfig(data=8))), nn.logical_axis_rules(DEFAULT_RULES):
        take = jax.jit(lambda *x: take_of_group(*x, group))
        with_shards = [
            jax.ShapeDtypeStruct(
                x.shape,
                x.dtype,
                sharding=jax.NamedSharding(
                    jax.sharding.get_mesh(), jax.sharding.PartitionSpec("data")
                ),
            )
            for x in (tokens, chosen)
        ]
        found = collectives(take.lower(*with_shards).compile().as_text())
    moved = [c for c in found if c.bytes > 64 * 4]
    assert [(c.kind, c.group) for c in moved] == [("all-gather", devices)] * (devices > 1)
