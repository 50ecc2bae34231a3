"""Saved models back to PyTorch's keys."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from internvideo_jax.convert.engine.conversion import Request, convert
from internvideo_jax.convert.engine.export import export, stored_bytes
from internvideo_jax.convert.engine.state_dict import to_tree
from internvideo_jax.convert.files.sources import open_checkpoint
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.saved_model import SavedModelError, load, save
from tests.small_models import BERT


def _read(file):
    return {name: tensor.read() for name, tensor in open_checkpoint(file).items()}


def _assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("name", "dtype"), [("concat_bn", ml_dtypes.bfloat16), ("distill", np.float32)]
)
def test_a_round_trip_is_exact(tiny_state, name, dtype, options, tmp_path):
    _, state = tiny_state(name, dtype=dtype)
    safetensors.numpy.save_file(state, tmp_path / "tiny.safetensors")
    convert([tmp_path / "tiny.safetensors"], tmp_path / "model", Request(options=options))
    report = export(tmp_path / "model", tmp_path / "back.safetensors")
    unrestored = ("ignored", "adapted", "initial_values")
    assert report == {"tensors": len(state)} | {name: {} for name in unrestored}
    _assert_equal(_read(tmp_path / "back.safetensors"), state)


def test_int8_kernels_come_back_in_float32(tiny_state, options, tmp_path):
    _, state = tiny_state("linear", dtype=ml_dtypes.bfloat16)
    safetensors.numpy.save_file(state, tmp_path / "tiny.safetensors")
    request = Request(options=options, to_int8=True)
    convert([tmp_path / "tiny.safetensors"], tmp_path / "model", request)
    params = load(tmp_path / "model").variables["params"]
    fc1 = params["encoder"]["blocks"]["mlp"]["fc1"]
    assert (fc1["kernel"].dtype, fc1["kernel_scale"].shape) == (np.int8, (3, 80))
    export(tmp_path / "model", tmp_path / "back.safetensors")
    back = _read(tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    assert back["blocks.2.attn.proj.weight"].dtype == np.float32
    assert back["pos_embed"].dtype == ml_dtypes.bfloat16
    for name, array in state.items():
        wide = array.astype(np.float32)
        atol = np.abs(wide).max() / 250
        np.testing.assert_allclose(back[name].astype(np.float32), wide, atol=atol, err_msg=name)


def test_tensors_that_repeat_others_are_written_again(make_state, tmp_path):
    state = make_state(BERT)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    safetensors.numpy.save_file(state, tmp_path / "bert.safetensors")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    options = {"num_attention_heads": BERT.num_heads}
    convert([tmp_path / "bert.safetensors"], tmp_path / "model", Request(options=options))
    assert export(tmp_path / "model", tmp_path / "back.safetensors")["tensors"] == len(state)
    _assert_equal(_read(tmp_path / "back.safetensors"), state)


def test_keys_get_the_prefix_of_their_file_back(tiny_state, tmp_path):
    _, state = tiny_state("videomae_teacher", prefix="encoder.")
    extra = {"decoder.norm.weight": np.ones(3, np.float32)}
    safetensors.numpy.save_file(state | extra, tmp_path / "tiny.safetensors")
    options = {"num_heads": 2, "all_frames": 4}
    convert([tmp_path / "tiny.safetensors"], tmp_path / "model", Request(options=options))
    report = export(tmp_path / "model", tmp_path / "back.safetensors")
    _assert_equal(_read(tmp_path / "back.safetensors"), state)
    assert report["ignored"] == {"VideoMAE pre-training decoder": ["decoder.norm.weight"]}


def test_what_is_not_restored_is_listed(tiny_state, options, tmp_path):
    _, state = tiny_state("linear")
    del state["fc_norm.weight"], state["fc_norm.bias"]
    state["clip_pos_embed"] = np.zeros((1, 65, 48), np.float32)
    safetensors.numpy.save_file(state, tmp_path / "tiny.safetensors")
    request = Request(options=options, changes={"num_frames": 8})
    convert([tmp_path / "tiny.safetensors"], tmp_path / "model", request)
    report = export(tmp_path / "model", tmp_path / "back.safetensors")
    (ignored,) = report["ignored"].values()
    assert ignored == ["clip_pos_embed"]
    assert report["adapted"] == {"pos_embed": "positions resized 4x4x4 -> 8x4x4"}
    assert report["initial_values"].keys() == {"params/fc_norm/scale", "params/fc_norm/bias"}
    back = _read(tmp_path / "back.safetensors")
    assert back["pos_embed"].shape == (1, 129, 48)
    np.testing.assert_array_equal(back["fc_norm.weight"], np.ones(20))
    untouched = state.keys() - {"pos_embed", "clip_pos_embed"}
    _assert_equal({k: back[k] for k in untouched}, {k: state[k] for k in untouched})


def test_models_that_were_trained_here_can_be_exported(tiny_state, plan_of, tmp_path):
    config, state = tiny_state("linear")
    save(
        tmp_path / "model",
        "video_classifier",
        config,
        Preprocessing(VideoPreprocessing()),
        to_tree(state, plan_of(state, config)),
    )
    written = []
    export(tmp_path / "model", tmp_path / "back.safetensors", written.append)
    _assert_equal(_read(tmp_path / "back.safetensors"), state)
    assert sum(written) == sum(array.nbytes for array in state.values())
    assert stored_bytes(tmp_path / "model") >= sum(written)


def test_other_folders_and_existing_files_are_refused(tmp_path):
    with pytest.raises(SavedModelError, match="not a saved model"):
        export(tmp_path, tmp_path / "back.safetensors")
