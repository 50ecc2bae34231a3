"""State dicts out of PyTorch files: a real one, many made here, and damaged or hostile ones."""

import argparse
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvideo_jax.convert.files.checkpoint import CheckpointError, UnsafePickleError
from internvideo_jax.convert.files.torch_file import open_torch_file

SAMPLE = Path(__file__).parent / "data" / "torch_sample.pth"


def check_sample(checkpoint):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 8
    expected = {
        "base": base,
        "transposed": base.transpose(2, 1, 0),
        "tail": base[1, 1:],
        "column": base[:, 1, 2],
        "expanded": np.broadcast_to(base[0, 0, :1], (3, 5)),
        "scalar": np.asarray(7, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "parameter": base.astype(ml_dtypes.bfloat16),
        "parameter_with_attribute": base[0],
        "tensor_with_attribute": base[1],
        "half": base.astype(np.float16),
        "double": base.astype(np.float64),
        "bool": base > 1,
        "byte": np.arange(5, dtype=np.uint8),
        "short": np.arange(5, dtype=np.int16),
        "unsigned": np.arange(5, dtype=np.uint16),
        "eighth": base.astype(ml_dtypes.float8_e4m3fn),
    }
    assert list(checkpoint) == list(expected)
    for name, tensor in checkpoint.items():
        array = tensor.read()
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype), name
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert checkpoint.key == "model"
    assert checkpoint.metadata["epoch"] == 3
    assert checkpoint.metadata["args"] == {
        "lr": 1e-3,
        "dtype": "torch.bfloat16",
        "device": "torch.device",
    }
    assert checkpoint.metadata["optimizer"]["state"]["0"]["exp_avg"] == "<Tensor>"


def test_a_file_made_by_torch():
    check_sample(open_torch_file(SAMPLE))


def test_another_place_can_be_chosen():
    checkpoint = open_torch_file(SAMPLE, key="model_ema")
    assert checkpoint["running_var"].read() == pytest.approx(np.full(3, 0.9), abs=1e-6)
    with pytest.raises(CheckpointError, match=r"no tensors under 'ema'.*'model_ema', 'model'"):
        open_torch_file(SAMPLE, key="ema")


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda state: state, None),
        (lambda state: {"model": state}, "model"),
        (lambda state: {"module": state, "ds_version": "0.10"}, "module"),
        (lambda state: {"state_dict": state, "epoch": 1}, "state_dict"),
        (lambda state: {"model": {"module": state}}, "model.module"),
        (lambda state: {"model_state": state, "epoch": 1}, "model_state"),
        (lambda state: {"model": None, "module": state}, "module"),
        (lambda state: {"module": {"b": state["w"]}, "model": state}, "model"),
        (lambda state: {"state_dict": {"c": state["w"]}, "module": state}, "module"),
    ],
)
def test_wrappers(tmp_path, torch_file, wrap, key):
    value = wrap({"w": torch_file.tensor(np.ones(3, np.float32))})
    checkpoint = open_torch_file(torch_file.save(tmp_path / "a.pth", value))
    assert checkpoint.key == key
    assert list(checkpoint) == ["w"]


def test_objects_of_unknown_classes_are_tolerated(tmp_path, torch_file):
    state = torch_file.New(
        torch_file.Name("easydict", "EasyDict"),
        items={"w": torch_file.tensor(np.ones(2, np.float32))},
    )
    value = {
        "module": state,
        "args": argparse.Namespace(lr=0.1, model=argparse.Namespace(depth=2)),
        "loss_scaler": torch_file.New(
            torch_file.Name("deepspeed.runtime.fp16.loss_scaler", "LossScaler"), {"cur_scale": 1}
        ),
    }
    checkpoint = open_torch_file(torch_file.save(tmp_path / "a.pth", value))
    np.testing.assert_array_equal(checkpoint["w"].read(), np.ones(2))
    assert checkpoint.metadata == {
        "args": {"lr": 0.1, "model": {"depth": 2}},
        "loss_scaler": {"cur_scale": 1},
    }


def test_plain_values_among_the_tensors_are_left_out(tmp_path, torch_file):
    value = {"w": torch_file.tensor(np.ones(2)), "version": 3, "extra": {"a": None}}
    checkpoint = open_torch_file(torch_file.save(tmp_path / "a.pth", value))
    assert list(checkpoint) == ["w"]


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_strided_views_equal_numpys(tmp_path, torch_file, data):
    """Any view that PyTorch can make of a block: axes permuted, sliced, dropped, expanded."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    block = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    view = block.transpose(data.draw(st.permutations(range(len(shape)))))
    cuts = [data.draw(st.integers(0, size - 1)) for size in view.shape]
    view = view[tuple(slice(cut, None, data.draw(st.integers(1, 2))) for cut in cuts)]
    if data.draw(st.booleans()):
        view = np.broadcast_to(view, (2, *view.shape))
    offset = (view.__array_interface__["data"][0] - block.__array_interface__["data"][0]) // 4
    strides = [step // 4 for step in view.strides]
    torch_file.storages.clear()
    tensor = torch_file.view(torch_file.storage(block), offset, view.shape, strides)
    read = open_torch_file(torch_file.save(tmp_path / "a.pth", {"w": tensor}))["w"].read()
    np.testing.assert_array_equal(read, view)
    assert not read.flags.writeable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"offset": 1}, "needs 7 elements; its data has 6"),
        ({"shape": [2, 4]}, "needs 7 elements"),
        ({"strides": [4, 1]}, "needs 7 elements"),
        ({"shape": [2**40, 3], "strides": [2**40, 1]}, "claims more elements"),
        ({"shape": [2**40, 3], "strides": [0, 0]}, "claims more elements"),
        ({"shape": [2**61, 0], "strides": [0, 1]}, "claims more elements"),
        ({"strides": [-1, 1]}, "not a whole number"),
        ({"offset": -1}, "not a whole number"),
        ({"shape": [-2, 3]}, "not a whole number"),
        ({"shape": [2.0, 3]}, "not a whole number"),
        ({"shape": [2**70, 3]}, "not a whole number"),
        ({"shape": [6]}, "has strides"),
        ({"shape": [1] * 40, "strides": [1] * 40}, "up to 32 numbers"),
        ({"length": 7}, "has 24 bytes instead of 28"),
        ({"dtype": "float64"}, "has 24 bytes instead of 48"),
        ({"dtype": "complex64", "length": 3}, "complex64 is not supported"),
    ],
)
def test_tensors_outside_of_their_data_are_refused(tmp_path, torch_file, change, reason):
    block = np.zeros(6, np.float32)
    storage = torch_file.storage(block, change.pop("dtype", None), change.pop("length", None))
    place = {"offset": 0, "shape": [2, 3], "strides": [3, 1]}
    tensor = torch_file.view(storage, **(place | change))
    path = torch_file.save(tmp_path / "a.pth", {"w": tensor})
    with pytest.raises(CheckpointError, match=reason):
        open_torch_file(path)


def test_all_unreadable_entries_are_listed(tmp_path, torch_file):
    kind = torch_file.Name("torch", "FloatStorage")
    value = {
        "good": torch_file.tensor(np.ones(2)),
        "complex": torch_file.tensor(np.ones(2, np.complex64)),
        "sparse": torch_file.Call(torch_file.Name("torch._utils", "_rebuild_sparse_tensor"), ()),
        "lost": torch_file.view(
            torch_file.Persistent(("storage", kind, "99", "cpu", 1)),
            0, [1], [1],
        ),
    }  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        open_torch_file(torch_file.save(tmp_path / "a.pth", value))
    message = str(caught.value)
    assert "3 of 4 entries cannot be read" in message
    for part in ("complex: its dtype complex64", "sparse: a value of the kind", "lost: its data"):
        assert part in message


def test_a_pickle_that_calls_something_is_refused(tmp_path, torch_file):
    touched = tmp_path / "touched"
    value = {
        "model": {"w": torch_file.tensor(np.ones(2))},
        "args": torch_file.Call(torch_file.Name("os", "system"), (f"touch {touched}",)),
    }
    path = torch_file.save(tmp_path / "a.pth", value)
    with pytest.raises(UnsafePickleError, match=r"a\.pth: .* os\.system; nothing was run"):
        open_torch_file(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "no tensors by name"),
        ({"epoch": 1}, r"top level has the keys \['epoch'\]"),
        ([1, 2], "no tensors by name"),
        (3, "no tensors by name"),
    ],
)
def test_files_without_tensors(tmp_path, torch_file, value, reason):
    with pytest.raises(CheckpointError, match=reason):
        open_torch_file(torch_file.save(tmp_path / "a.pth", value))


def test_a_whole_module_is_named(tmp_path, torch_file):
    weights = {"_parameters": {"w": torch_file.tensor(np.ones(2))}, "_buffers": {}}
    path = torch_file.save(
        tmp_path / "a.pth",
        torch_file.New(torch_file.Name("torch.nn.modules.linear", "Linear"), weights),
    )
    with pytest.raises(CheckpointError, match=r"object of the class torch\.nn.*state_dict\(\)"):
        open_torch_file(path)


def test_several_sets_of_tensors_need_a_choice(tmp_path, torch_file):
    value = {
        "generator": {"w": torch_file.tensor(np.ones(1))},
        "critic": {"w": torch_file.tensor(np.zeros(1))},
    }
    path = torch_file.save(tmp_path / "a.pth", value)
    with pytest.raises(CheckpointError, match=r"\['generator', 'critic'\]; choose one with key="):
        open_torch_file(path)
    assert open_torch_file(path, key="critic")["w"].read() == 0


def test_a_mapping_that_holds_itself(tmp_path, torch_file):
    # {"self": <itself>, ...} many times over: every path through it is looked at once.
    entries = b"".join(b"X" + struct.pack("<I", 4) + b"%04d" % i + b"h\x00" for i in range(500))
    path = torch_file.save_pickle(tmp_path / "a.pth", b"\x80\x02}q\x00(" + entries + b"u.")
    with pytest.raises(CheckpointError, match="no tensors by name"):
        open_torch_file(path)


def test_big_endian_files_are_refused(tmp_path, torch_file):
    value = {"w": torch_file.tensor(np.ones(1))}
    path = torch_file.save(tmp_path / "a.pth", value, byte_order=b"big")
    with pytest.raises(CheckpointError, match="byte order is 'big'"):
        open_torch_file(path)


def test_a_compressed_archive_is_refused(tmp_path, torch_file):
    value = {"w": torch_file.tensor(np.zeros(1_000_000, np.float32))}
    path = torch_file.save(tmp_path / "bomb.pth", value, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"data\.pkl' is compressed .* torch\.save"):
        open_torch_file(path)


def test_archives_that_are_not_state_dicts(tmp_path):
    other = tmp_path / "other.pth"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("word/document.xml", b"")
    with pytest.raises(CheckpointError, match="not one that torch.save wrote"):
        open_torch_file(other)
    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/constants.pkl", b"\x80\x02).")
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_torch_file(script)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, kept):
    data = SAMPLE.read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match="interrupted download"):
        open_torch_file(path)


@given(edits=st.dictionaries(st.integers(0, 10_000), st.integers(0, 255), min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_give_tensors_or_a_checkpoint_error(tmp_path, edits):
    data = bytearray(SAMPLE.read_bytes())
    for position, byte in edits.items():
        data[position % len(data)] = byte
    path = tmp_path / "mutated.pth"
    path.write_bytes(data)
    try:
        checkpoint = open_torch_file(path)
    except CheckpointError:
        return
    for tensor in checkpoint.values():
        assert tensor.read().shape == tensor.shape


def test_a_file_that_is_cut_while_open(tmp_path, torch_file):
    value = {"w": torch_file.tensor(np.ones(5000))}
    path = torch_file.save(tmp_path / "a.pth", value)
    tensor = open_torch_file(path)["w"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="shorter than when it was opened"):
        tensor.read()


def test_reading_holds_one_tensor_at_a_time(tmp_path, torch_file):
    """Mappings go when their array goes; the file is not mapped as a whole."""

    def mapped():
        return Path("/proc/self/maps").read_text().count("many.pth")

    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc/self/maps to see what is mapped")
    value = {str(i): torch_file.tensor(np.full(5000, i, np.float32)) for i in range(5)}
    checkpoint = open_torch_file(torch_file.save(tmp_path / "many.pth", value))
    assert mapped() == 0
    array = checkpoint["3"].read()
    assert (mapped(), array[0]) == (1, 3)
    del array
    assert mapped() == 0
