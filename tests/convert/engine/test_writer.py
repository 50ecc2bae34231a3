"""The streaming writer: Orbax restores what it wrote, and it finishes wholly or not at all."""

import contextlib
import errno
import functools
import os
import resource

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util
from orbax.checkpoint import v1

from internvideo_jax.checksums import partial_checksum
from internvideo_jax.convert.engine import writer
from internvideo_jax.convert.engine.writer import Declared, write_arrays
from internvideo_jax.files import atomic_directory


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes a few hundred bytes behave as tens of megabytes do."""
    monkeypatch.setattr(writer, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(writer, "MAX_CHUNK_BYTES", 200)
    monkeypatch.setattr(writer, "MAX_BYTES_IN_FLIGHT", 400)


def sample(rng):
    """Arrays of every size class: scalar, whole, layers in one file or each its own, split rows."""
    return {
        "params/blocks/mlp/kernel": rng.standard_normal((3, 7, 11), dtype=np.float32),
        "params/blocks/norm/scale": rng.standard_normal((3, 4), dtype=np.float32),
        "params/blocks/gate": rng.standard_normal((64,)),
        "params/blocks/one/kernel": rng.standard_normal((1, 5, 9), dtype=np.float32),
        "params/blocks/unit": rng.standard_normal((40, 1, 1), dtype=np.float32),
        "params/embedding": rng.standard_normal((13, 9), dtype=np.float32).astype(jnp.bfloat16),
        "params/position": rng.standard_normal((1, 33, 5)).astype(np.float16),
        "params/small": rng.standard_normal((2, 3)).astype(ml_dtypes.float8_e4m3fn),
        "params/zeros": np.zeros((100, 3), np.float32),
        "batch_stats/norm/mean": rng.standard_normal(50, dtype=np.float32),
        "batch_stats/count": np.asarray(3, np.int64),
        "batch_stats/mask": rng.random((20, 30)) > 0.5,
    }


def declare(arrays):
    return {path: Declared(a.shape, a.dtype, "blocks" in path) for path, a in arrays.items()}


def pieces(arrays, order=range):
    for path, array in arrays.items():
        if "blocks" in path:
            yield from ((path, layer, array[layer]) for layer in order(len(array)))
        else:
            yield path, None, array


@pytest.mark.parametrize(
    "restore",
    [
        lambda path: ocp.StandardCheckpointer().restore(path),
        lambda path: ocp.PyTreeCheckpointer().restore(path),
        v1.load,
    ],
)
@pytest.mark.parametrize("order", [range, lambda count: reversed(range(count))])
def test_orbax_restores_every_array(tmp_path, rng, small_chunks, restore, order):
    arrays = sample(rng)
    written = write_arrays(tmp_path / "out", declare(arrays), pieces(arrays, order))
    restored = traverse_util.flatten_dict(restore(tmp_path / "out"), sep="/")
    assert restored.keys() == arrays.keys()
    for path, array in arrays.items():
        found = np.asarray(restored[path])
        assert (found.shape, found.dtype) == (array.shape, array.dtype), path
        np.testing.assert_array_equal(found, array, err_msg=path)
        if array.itemsize <= 4:
            assert written.sums[path] == partial_checksum(array), path
    assert written.not_finite == {}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_transposed_and_mapped_arrays_are_stored_in_c_order(tmp_path, rng, small_chunks):
    array = rng.standard_normal((3, 11, 7), dtype=np.float32)
    mapped = np.memmap(tmp_path / "raw", np.float32, "w+", shape=array.shape)
    mapped[:] = array
    arrays = {"blocks/kernel": mapped.transpose(0, 2, 1), "rows": mapped.T}
    write_arrays(tmp_path / "out", declare(arrays), pieces(arrays))
    restored = ocp.StandardCheckpointer().restore(tmp_path / "out")
    np.testing.assert_array_equal(restored["blocks"]["kernel"], array.transpose(0, 2, 1))
    np.testing.assert_array_equal(restored["rows"], array.T)


def test_layers_and_row_groups_have_files_of_their_own(tmp_path, rng, small_chunks):
    arrays = sample(rng)
    write_arrays(tmp_path / "out", declare(arrays), pieces(arrays))
    files = {
        folder.name: sorted(file.name for file in folder.iterdir() if file.name != ".zarray")
        for folder in (tmp_path / "out").iterdir()
        if folder.is_dir()
    }
    # 7 x 11 floats are 308 bytes: two chunks of at most 200 for each of the three layers.
    assert files["params.blocks.mlp.kernel"] == [f"{i}.{j}.0" for i in range(3) for j in range(2)]
    assert files["params.blocks.norm.scale"] == ["0.0"]
    assert files["params.embedding"] == ["0.0", "1.0"]
    assert files["params.zeros"] == [f"{i}.0" for i in range(7)]
    assert files["batch_stats.count"] == ["0"]


def test_what_is_not_finite_is_counted_by_array_and_layer(tmp_path, rng, small_chunks):
    arrays = {path: array.copy() for path, array in sample(rng).items()}
    arrays["params/blocks/mlp/kernel"][1, ::3, 4] = np.nan
    arrays["params/blocks/norm/scale"][2] = -np.inf, np.nan, 0, np.inf
    arrays["params/position"][0, 4, 4] = np.inf
    written = write_arrays(tmp_path / "out", declare(arrays), pieces(arrays))
    assert written.not_finite == {
        ("params/blocks/mlp/kernel", 1): {"NaN": 3},
        ("params/blocks/norm/scale", 2): {"NaN": 1, "infinite": 2},
        ("params/position", None): {"infinite": 1},
    }


def test_a_lost_chunk_is_noticed(tmp_path, rng, small_chunks):
    arrays = {"w": rng.random((10, 10))}
    write_arrays(tmp_path / "out", declare(arrays), pieces(arrays))
    next((tmp_path / "out" / "w").glob("1.*")).unlink()
    with pytest.raises(ValueError, match="missing"):
        ocp.StandardCheckpointer().restore(tmp_path / "out")


def _interrupted():
    yield "blocks", 0, np.zeros(3_000_000, np.float32)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([("blocks", 0, np.zeros(3, np.float32))], pytest.raises(ValueError, match="'blocks'")),
        ([("blocks", 0, np.zeros(3_000_000))], pytest.raises(ValueError, match="found .*float64")),
        ([("blocks", 0, np.zeros(3_000_000, np.float32))], pytest.raises(ValueError, match="miss")),
        (_interrupted(), pytest.raises(KeyboardInterrupt)),
    ],
)
def test_pieces_that_do_not_fit_and_interrupts_leave_nothing(tmp_path, pieces, error):
    declared = {"blocks": Declared((2, 3_000_000), np.dtype(np.float32), is_stacked=True)}
    with error:
        write_arrays(tmp_path / "out", declared, pieces)
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_leaves_nothing(tmp_path):
    declared = {"blocks": Declared((16, 1 << 18), np.dtype(np.float32), is_stacked=True)}
    layers = (("blocks", layer, np.ones(1 << 18, np.float32)) for layer in range(16))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(OSError, match="large"):
            write_arrays(tmp_path / "out", declared, layers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_the_systems_error_and_leaves_nothing(tmp_path, monkeypatch):
    full = functools.partial(open, "/dev/full", "wb", buffering=0)
    monkeypatch.setattr(writer, "open", lambda *_, **__: full(), raising=False)
    declared = {"blocks": Declared((4, 1 << 18), np.dtype(np.float32), is_stacked=True)}
    layers = (("blocks", layer, np.ones(1 << 18, np.float32)) for layer in range(4))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        write_arrays(tmp_path / "out", declared, layers)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_have_left_is_removed(tmp_path):
    abandoned, foreign = tmp_path / ".out.partial-a", tmp_path / ".out.partial-b"
    abandoned.mkdir()
    foreign.mkdir()
    (abandoned / "lock").touch()
    with atomic_directory(tmp_path / "out") as directory:
        assert not abandoned.exists()
        # Another process at work on the same output.
        with atomic_directory(tmp_path / "out") as other:
            assert directory.parent.exists()
            other.mkdir()
        directory.mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"out", foreign.name}


def test_atomic_directory_removes_only_what_it_made(tmp_path):
    (tmp_path / "kept").mkdir()
    with contextlib.suppress(RuntimeError):
        with atomic_directory(tmp_path / "kept" / "new" / "out") as directory:
            directory.mkdir()
            (directory / "file").write_text("x")
            raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    with atomic_directory(tmp_path / "kept" / "new" / "out") as directory:
        directory.mkdir()
        assert not (tmp_path / "kept" / "new" / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "new", "out"]
