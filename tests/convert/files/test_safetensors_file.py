"""The safetensors reader and writer against the reference library, and damaged files."""

import json
import resource
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.convert.files.safetensors_file import (
    open_safetensors_file,
    write_safetensors_file,
)

reference = pytest.importorskip("safetensors.numpy")

ARRAYS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.scalar": np.asarray(7, np.int64),
    "half": np.linspace(0, 1, 5, dtype=np.float16),
    "brain": np.linspace(0, 1, 5).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.asarray([True, False, True]),
    "bytes": np.arange(3, dtype=np.uint8),
    "double": np.full((1, 1, 2), np.pi),
}


def declared(arrays):
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def write(path, arrays, declarations=None, metadata=None):
    write_safetensors_file(path, declarations or declared(arrays), arrays.items(), metadata)
    return path


def check_equal(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found, expected)


def test_reads_what_the_reference_library_writes(tmp_path):
    reference.save_file(ARRAYS, tmp_path / "a.safetensors", {"format": "pt"})
    checkpoint = open_safetensors_file(tmp_path / "a.safetensors")
    assert checkpoint.keys() == ARRAYS.keys()
    assert checkpoint.metadata == {"format": "pt"}
    for name, tensor in checkpoint.items():
        assert (tensor.shape, tensor.dtype) == (ARRAYS[name].shape, ARRAYS[name].dtype)
        check_equal(tensor.read(), ARRAYS[name])


def test_the_reference_library_reads_what_we_write(tmp_path):
    path = write(tmp_path / "new" / "a.safetensors", ARRAYS, metadata={"source": "test"})
    loaded = reference.load_file(path)
    assert loaded.keys() == ARRAYS.keys()
    for name, array in loaded.items():
        check_equal(array, ARRAYS[name])
    checkpoint = open_safetensors_file(path)
    assert list(checkpoint) == list(ARRAYS)
    assert checkpoint.metadata == {"source": "test"}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.safetensors"]


def test_tensors_may_come_in_any_order_and_layout(tmp_path):
    arrays = {"x": np.arange(6.0).reshape(2, 3).T, "y": np.arange(10)[::2]}
    path = write(tmp_path / "a.safetensors", arrays, dict(reversed(declared(arrays).items())))
    for name, array in reference.load_file(path).items():
        check_equal(array, arrays[name])


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"z": np.zeros(2)}, "'z' of .* None"),
        ({"x": np.zeros(3)}, r"\(2,\).*found \(3,\)"),
        ({"x": np.zeros(2, np.float32)}, "found .* float32"),
        ({}, "never written: x"),
    ],
)
def test_writing_something_else_leaves_nothing(tmp_path, arrays, reason):
    with pytest.raises(ValueError, match=reason):
        write(tmp_path / "a.safetensors", arrays, declared({"x": np.zeros(2)}))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="large"):
            write(tmp_path / "a.safetensors", {"x": np.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_existing_files_and_foreign_dtypes_are_refused_at_once(tmp_path):
    (tmp_path / "a.safetensors").write_text("precious")
    with pytest.raises(FileExistsError, match="choose another name"):
        write(tmp_path / "a.safetensors", ARRAYS)
    with pytest.raises(ValueError, match="cannot hold these tensors: c"):
        write(tmp_path / "b.safetensors", {"c": np.zeros(1, complex)})
    assert (tmp_path / "a.safetensors").read_text() == "precious"


def file_of(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape=(2,), begin=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "not a readable"),
        (b"[1]", "not a readable"),
        (b"\xff\xfe{}", "not a readable"),
        (b'{"a":' + b"[" * 100_000, "not a readable"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not a readable"),
        ({"a": 3}, "not a readable"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "data_offsets"),
        ({"a": entry([1], dtype="C64")}, "'C64'; supported are"),
        ({"a": entry(dtype=["F32"])}, "not a readable"),
        ({"a": entry(shape=[-2])}, "not a readable"),
        ({"a": entry(shape=[2.0])}, "not a readable"),
        ({"a": entry(shape=[2**63])}, "not a readable"),
        ({"a": entry(shape=[1] * 40, end=4), "b": entry(shape=[1], begin=4)}, "at most 32"),
        ({"a": entry(end=12)}, "not a readable"),
        ({"a": entry(begin=8, end=16)}, "not a readable"),
        ({"a": entry(), "b": entry()}, "not a readable"),
        ({"a": entry(), "b": entry(begin=8, end=16)}, "fetch it again"),
        ({}, "fetch it again"),
        ({"__metadata__": 3, "a": entry()}, "not a readable"),
    ],
)
def test_broken_rules_are_named(tmp_path, header, reason):
    path = file_of(tmp_path / "a.safetensors", header, b"\0" * 8)
    with pytest.raises(CheckpointError, match=reason):
        open_safetensors_file(path)


@pytest.mark.parametrize("size", [0, 4, 8, 20, 200])
def test_truncated_files_are_refused(tmp_path, size):
    path = write(tmp_path / "a.safetensors", ARRAYS)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="not complete"):
        open_safetensors_file(path)


def test_a_huge_header_is_not_read(tmp_path):
    path = file_of(tmp_path / "a.safetensors", b"{}", length=2**40)
    with pytest.raises(CheckpointError, match="not a readable"):
        open_safetensors_file(path)


@given(edits=st.dictionaries(st.integers(0, 900), st.integers(0, 255), min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_give_tensors_or_a_checkpoint_error(tmp_path, edits):
    data = bytearray(reference.save(ARRAYS))
    for position, byte in edits.items():
        data[position % len(data)] = byte
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    try:
        checkpoint = open_safetensors_file(path)
    except CheckpointError:
        return
    for tensor in checkpoint.values():
        assert tensor.read().shape == tensor.shape
