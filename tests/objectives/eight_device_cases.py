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
@pytest.mark.parametrize("group", [3, 12, 24, 48, None])
def test_negatives_and_their_rows_are_those_of_one_device(sizes, group):
    """Groups of part of a device's rows, of all of them, of those of several devices, and none."""
    rows = len(IDS) // (8 if sizes == MESHES[0] else 4)
    if group is not None and rows % group and group % rows:
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


def split_rows(*arrays):
    """The shapes of arrays that eight devices hold by their rows."""
    split = jax.NamedSharding(jax.sharding.get_mesh(), jax.sharding.PartitionSpec("data"))
    return [jax.ShapeDtypeStruct(shape, dtype, sharding=split) for shape, dtype in arrays]


@pytest.mark.parametrize(("group", "devices"), [(4, 1), (16, 2)])
def test_only_a_groups_own_rows_are_exchanged(group, devices):
    with jax.set_mesh(make_mesh(MeshConfig(data=8))), nn.logical_axis_rules(DEFAULT_RULES):
        take = jax.jit(lambda *x: take_of_group(*x, group))
        arrays = split_rows(((64, 5, 3), jnp.float32), ((64,), jnp.int32))
        found = collectives(take.lower(*arrays).compile().as_text())
    moved = [c for c in found if c.bytes > 64 * 4]
    assert [(c.kind, c.group) for c in moved] == [("all-gather", devices)] * (devices > 1)


def test_of_the_whole_batch_the_chosen_rows_alone_are_exchanged():
    """Forwards and backwards in rounds of two rows for each pair of devices, never all tokens."""
    row = 50 * 3 * 4

    def taken(tokens, chosen):
        return (take_of_group(tokens, chosen, None) ** 2).sum()

    with jax.set_mesh(make_mesh(MeshConfig(data=8))), nn.logical_axis_rules(DEFAULT_RULES):
        arrays = split_rows(((64, 50, 3), jnp.float32), ((64,), jnp.int32))
        # Left to itself, the compiler may gather the gradient.
        gradient = jax.jit(jax.grad(taken), out_shardings=arrays[0].sharding)
        found = collectives(gradient.lower(*arrays).compile().as_text())
    moved = [c for c in found if c.bytes > 64 * 4 and c.group > 1]
    assert {c.kind for c in moved} == {"all-to-all"}
    assert max(c.bytes for c in moved) <= 8 * 2 * row
    assert len(moved) == 2


@pytest.mark.parametrize("wanted", [0, 63])
def test_all_devices_may_want_the_same_row(wanted):
    """Which takes as many rounds as there can be."""
    rows = np.full(64, wanted, np.int32)
    x = np.arange(64.0, dtype=np.float32)[:, None]

    def run(x):
        return jax.value_and_grad(lambda x: (take_of_group(x, rows, None) ** 2).sum())(x)

    value, gradient = on_mesh({"data": 8}, run, x)
    assert value == 64 * wanted**2
    np.testing.assert_array_equal(gradient, np.where(x == wanted, 128 * wanted, 0))


def test_of_all_pairs_no_device_holds_the_similarities():
    size, width = 8192, 8

    def draw(media, text, ids):
        return draw_negatives(jax.random.key(0), media, text, jnp.float32(0.1), ids, None)

    embedding = (size, width), jnp.float32
    with jax.set_mesh(make_mesh(MeshConfig(data=8))), nn.logical_axis_rules(DEFAULT_RULES):
        arrays = split_rows(embedding, embedding, ((size,), jnp.int32))
        compiled = jax.jit(draw).lower(*arrays).compile()
    # All pairs are 256 MiB, a device's rows with all of the batch 32 MiB, with a part of it 4 MiB.
    assert compiled.memory_analysis().temp_size_in_bytes < 24 * 2**20
    assert max(c.bytes for c in collectives(compiled.as_text())) <= size * width * 4
