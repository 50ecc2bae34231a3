"""Checksums of arrays: of every bit and every place, whole or in pieces, on host and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.checksums import _device_checksums, checksums, partial_checksum


def test_checksums_are_the_same_on_host_and_devices():
    values = [100 * jax.random.normal(jax.random.key(0), shape) for shape in ((), (7,), (3, 1, 5))]
    arrays = [x.astype(dtype) for x in values for dtype in ("float32", "bfloat16", "uint8")]
    on_host = [partial_checksum(np.asarray(x)) for x in arrays]
    assert on_host == list(map(int, _device_checksums(arrays)))


def test_checksums_depend_on_every_bit_and_every_place():
    x = np.random.default_rng(0).standard_normal((5, 7), np.float32)
    expected = checksums({"x": jnp.asarray(x)})
    assert list(expected) == ["x"]
    for index in np.ndindex(x.shape):
        for bit in (0, 13, 31):
            changed = x.copy()
            changed.view(np.uint32)[index] ^= np.uint32(1) << bit
            assert checksums({"x": jnp.asarray(changed)}) != expected
    assert checksums({"x": jnp.asarray(x[::-1])}) != expected
    assert checksums({"x": jnp.asarray(x[:, ::-1])}) != expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_pieces_add_up_to_the_sum_of_bits_times_odd_positions(dtype):
    x = (np.random.default_rng(0).standard_normal(20_000) * 50).astype(dtype)
    bits = x.view(f"u{x.itemsize}").astype(np.uint64)
    whole = int(np.sum(bits * (2 * np.arange(len(x), dtype=np.uint64) + 1)) % 2**32)
    assert partial_checksum(x) == whole
    for cut in (0, 1, 8192, 12_345):
        parts = partial_checksum(x[:cut]), partial_checksum(x[cut:], start=cut)
        assert sum(parts) % 2**32 == whole
