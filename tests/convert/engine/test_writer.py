"""The streaming writer: Orbax restores what it wrote, and it finishes wholly or not at all."""

import contextlib
import errno
import resource
import threading

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util
from orbax.checkpoint import v1

from internvideo_jax.convert.engine import writer as writer_module
from internvideo_jax.convert.engine.writer import StreamingWriter
from internvideo_jax.files import atomic_directory


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes a few hundred bytes behave as tens of megabytes do."""
    monkeypatch.setattr(writer_module, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(writer_module, "MAX_PIECE_BYTES", 200)
    monkeypatch.setattr(writer_module, "MAX_BYTES_IN_FLIGHT", 400)
    monkeypatch.setattr(writer_module, "_WRITE_BYTES", 64)


def sample(rng):
    """Arrays of every size class: scalar, whole, gathered layers, a chunk a layer, split rows."""
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


def write(directory, arrays, order=range):
    with StreamingWriter(directory) as writer:
        for path, array in arrays.items():
            writer.declare(path, array.shape, array.dtype, "blocks" in path)
        for path, array in arrays.items():
            if "blocks" in path:
                for layer in order(len(array)):
                    writer.write(path, array[layer], layer)
            else:
                writer.write(path, array)


def check_restored(restored, arrays):
    flat = traverse_util.flatten_dict(restored, sep="/")
    assert flat.keys() == arrays.keys()
    for path, array in arrays.items():
        found = np.asarray(flat[path])
        assert (found.shape, found.dtype) == (array.shape, array.dtype), path
        np.testing.assert_array_equal(found, array, err_msg=path)


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
    # An empty directory is filled.
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", arrays, order)
    check_restored(restore(tmp_path / "out"), arrays)


def test_transposed_and_mapped_arrays_are_stored_in_c_order(tmp_path, rng, small_chunks):
    array = rng.standard_normal((3, 11, 7), dtype=np.float32)
    mapped = np.memmap(tmp_path / "raw", np.float32, "w+", shape=array.shape)
    mapped[:] = array
    write(tmp_path / "out", {"blocks/kernel": mapped.transpose(0, 2, 1), "rows": mapped.T})
    restored = ocp.StandardCheckpointer().restore(tmp_path / "out")
    np.testing.assert_array_equal(restored["blocks"]["kernel"], array.transpose(0, 2, 1))
    np.testing.assert_array_equal(restored["rows"], array.T)


def test_layers_and_row_groups_have_files_of_their_own(tmp_path, rng, small_chunks):
    write(tmp_path / "out", sample(rng))
    files = {
        folder.name: sorted(file.name for file in folder.iterdir() if file.name != ".zarray")
        for folder in (tmp_path / "out").iterdir()
        if folder.is_dir()
    }
    # 7 x 11 floats are 308 bytes: two chunks of at most 200 for each of the three layers.
    assert files["params.blocks.mlp.kernel"] == [f"{i}.{j}.0" for i in range(3) for j in range(2)]
    assert files["params.blocks.norm.scale"] == ["0.0"]
    assert files["params.embedding"] == ["0.0", "1.0"]
    assert files["params.position"] == ["0.0.0", "0.1.0"]
    assert files["batch_stats.count"] == ["0"]


def test_a_lost_chunk_is_noticed(tmp_path, rng, small_chunks):
    write(tmp_path / "out", {"w": rng.random((10, 10))})
    next((tmp_path / "out" / "w").glob("1.*")).unlink()
    with pytest.raises(ValueError, match="missing"):
        ocp.StandardCheckpointer().restore(tmp_path / "out")


@pytest.mark.parametrize(
    ("misuse", "reason"),
    [
        (lambda w: w.write("x", np.zeros(3)), "'x' was not declared"),
        (lambda w: w.write("a", np.zeros(4)), r"pieces of shape \(3,\).*got \(4,\)"),
        (lambda w: w.write("a", np.zeros(3, np.float32)), "dtype float64; got .* float32"),
        (lambda w: w.write("a", np.zeros(3), 0), "piece 0 of 'a' was written before or does not"),
        (lambda w: [w.write("a", np.zeros(3)) for _ in "12"], "piece None of 'a' was written"),
        (lambda w: w.write("blocks", np.zeros(3), 2), "piece 2 of 'blocks'"),
        (lambda w: w.write("blocks", np.zeros((2, 3))), "piece None of 'blocks'"),
        (lambda w: w.write("blocks", np.zeros(3), 1), r"a: the array\n  blocks: layers \[0\]"),
        (lambda w: w.declare("a/b", (1,), "float32"), "cannot both be arrays"),
        (lambda w: w.declare("a", (1,), "float32"), "cannot both be arrays"),
        (lambda w: w.declare("b//c", (1,), "float32"), "not names without dots"),
        (lambda w: w.declare("../b", (1,), "float32"), "not names without dots"),
        (lambda w: w.declare("b", (3, 0), "float32"), "nothing to write"),
        (lambda w: w.declare("b", (), "float32", True), "nothing to write"),
    ],
)
def test_misuse_is_named_and_leaves_nothing(tmp_path, misuse, reason):
    def write():
        with StreamingWriter(tmp_path / "deep" / "out") as writer:
            writer.declare("a", (3,), "float64")
            writer.declare("blocks", (2, 3), "float64", layer_chunked=True)
            misuse(writer)

    with pytest.raises(ValueError, match=reason):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    with pytest.raises(FileExistsError, match="choose another output"):
        with StreamingWriter(tmp_path / "out"):
            pytest.fail("the block must not run")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "precious"]


@pytest.mark.parametrize("error", [RuntimeError("broken source"), KeyboardInterrupt()])
def test_errors_and_interrupts_in_the_block_leave_nothing(tmp_path, error):
    def write():
        with StreamingWriter(tmp_path / "out") as writer:
            writer.declare("w", (2, 3_000_000), "float32", layer_chunked=True)
            writer.write("w", np.zeros(3_000_000, np.float32), 0)
            raise error

    with pytest.raises(type(error)):
        write()
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("writer")]


def fill(directory, megabytes):
    with StreamingWriter(directory) as writer:
        writer.declare("blocks", (megabytes, 1 << 18), "float32", layer_chunked=True)
        for layer in range(megabytes):
            writer.write("blocks", np.ones(1 << 18, np.float32), layer)


def test_a_file_size_limit_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(OSError, match="large") as caught:
            fill(tmp_path / "out", 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_pieces_in_flight_are_bounded(tmp_path, monkeypatch, small_chunks):
    """A slow disk makes `write` wait instead of letting arrays pile up."""
    waiting, most, original = [0], [0], writer_module._write_chunk
    release, lock = threading.Event(), threading.Lock()

    def slow(path, piece, size):
        release.wait(10)
        original(path, piece, size)
        with lock:
            waiting[0] -= piece.nbytes

    monkeypatch.setattr(writer_module, "_write_chunk", slow)
    with StreamingWriter(tmp_path / "out") as writer:
        writer.declare("blocks", (20, 40), "float32", layer_chunked=True)
        for layer in range(20):
            with lock:
                waiting[0] += 160
                most[0] = max(most[0], waiting[0])
            if layer == 2:
                threading.Timer(0.2, release.set).start()
            writer.write("blocks", np.full(40, layer, np.float32), layer)
    # Two pieces of 160 bytes fit 400, and one more is in the hands of the caller.
    assert most[0] <= 3 * 160
    restored = ocp.StandardCheckpointer().restore(tmp_path / "out")
    np.testing.assert_array_equal(restored["blocks"][:, 0], np.arange(20))


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
