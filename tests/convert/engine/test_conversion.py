"""Checkpoints on disk to saved models."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from internvideo_jax.convert.engine import conversion
from internvideo_jax.convert.engine.conversion import Request, convert, prepare
from internvideo_jax.convert.engine.state_dict import to_tree
from internvideo_jax.convert.engine.upstream import to_upstream
from internvideo_jax.saved_model import load, read_description
from tests.small_models import BERT


@pytest.fixture
def checkpoint(tmp_path, tiny_state):
    """Writes a tiny model's state dict: `checkpoint(name)` -> (file, state)."""

    def write(name):
        _, state = tiny_state(name)
        safetensors.numpy.save_file(state, tmp_path / "tiny.safetensors")
        return tmp_path / "tiny.safetensors", state

    return write


def _flat(variables):
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(variables, sep="/").items()}


@pytest.mark.parametrize("name", ["concat_bn", "videomae_teacher"])
def test_what_is_loaded_is_what_the_checkpoint_holds(
    name, configs, checkpoint, options, plan_of, tmp_path
):
    config = configs[name]
    file, state = checkpoint(name)
    given = {"num_heads": 2} if name == "videomae_teacher" else options
    if name == "videomae_teacher":
        given |= {"all_frames": 4, "mae_return_layer": 1, "init_values": 0.1}
    done = convert([file], tmp_path / "model", Request(options=given))
    assert done.plan.config == config
    model = load(tmp_path / "model")
    assert model.config == config
    expected = _flat(to_tree(state, plan_of(state, config)))
    found = _flat(model.variables)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_the_model_describes_itself(checkpoint, options, tmp_path):
    file, _ = checkpoint("linear")
    request = Request(options=options, changes={"num_frames": 8})
    convert([file], tmp_path / "model", request, sha256=True)
    description = read_description(tmp_path / "model")
    assert description["preprocessing"]["video"]["num_frames"] == 8
    assert description["preprocessing"]["video"]["image_size"] == 8
    assert description["conversion"]["adapted"] == {"pos_embed": "positions resized 4x4x4 -> 8x4x4"}
    assert description["conversion"]["tensors_loaded"] == 61
    (source,) = description["source"]["files"]
    assert source["name"] == "tiny.safetensors"
    assert source["bytes"] == file.stat().st_size
    assert source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_weights_of_an_ema_are_taken_by_their_key(tiny_state, options, torch_file, tmp_path):
    _, state = tiny_state("encoder")
    content = {
        "model": {k: torch_file.tensor(v) for k, v in state.items()},
        "model_ema": {k: torch_file.tensor(v + 1) for k, v in state.items()},
    }
    file = torch_file.save(tmp_path / "tiny.pth", content)
    convert([file], tmp_path / "model", Request(options=options, key="model_ema"))
    found = load(tmp_path / "model").variables["params"]["cls_token"]
    np.testing.assert_array_equal(found, state["cls_token"] + 1)


def test_later_sources_replace_tensors_of_earlier_ones(
    configs, checkpoint, options, make_state, tmp_path
):
    file, state = checkpoint("linear")
    encoder = configs["encoder"]
    stage2 = {f"vision_encoder.{k}": v + 1 for k, v in make_state(encoder).items()}
    stage2["text_encoder.bert.weight"] = np.zeros((2, 2), np.float32)
    stage2["temp"] = np.zeros((), np.float32)
    del stage2["vision_encoder.cls_token"]
    safetensors.numpy.save_file(stage2, tmp_path / "stage2.safetensors")
    request = Request(options=options, architecture="video_classifier")
    done = convert([file, tmp_path / "stage2.safetensors"], tmp_path / "model", request)
    assert done.plan.ignored == dict.fromkeys(
        ("text_encoder.bert.weight", "temp"), "stage-2 text tower and matching heads"
    )
    params = load(tmp_path / "model").variables["params"]
    np.testing.assert_array_equal(
        params["encoder"]["pos_embed"], stage2["vision_encoder.pos_embed"]
    )
    np.testing.assert_array_equal(params["encoder"]["cls_token"], state["cls_token"])
    np.testing.assert_array_equal(params["head"]["bias"], state["head.bias"])


def test_a_new_head_on_a_model_without_one(checkpoint, options, tmp_path):
    file, _ = checkpoint("pretrain")
    request = Request(options=options, changes={"num_classes": 9}, new_head=True)
    done = convert([file], tmp_path / "model", request)
    assert done.plan.architecture == "video_classifier"
    params = load(tmp_path / "model").variables["params"]
    assert params["head"]["kernel"].shape == (20, 9)
    np.testing.assert_array_equal(params["fc_norm"]["scale"], np.ones(20))
    assert not params["head"]["bias"].any()


def test_a_model_of_texts_keeps_its_tokenizer(make_state, tmp_path):
    file = tmp_path / "bert.safetensors"
    stored = {"config": json.dumps(to_upstream(BERT))}
    safetensors.numpy.save_file(make_state(BERT), file, stored)
    with pytest.raises(ValueError, match=r"vocab\.txt in .*--tokenizer=FOLDER"):
        prepare([file], Request())
    (tmp_path / "vocab.txt").write_text("[PAD]")
    convert([file], tmp_path / "model", Request())
    assert load(tmp_path / "model").tokenizer_files["vocab.txt"].read_text() == "[PAD]"


def test_a_release_that_cannot_be_fetched_says_why():
    with pytest.raises(ValueError, match=r"broken link: upstream's link leads to the K400 file"):
        prepare([], Request(release="internvideo2-1b-k600-f8"))


def test_a_release_is_fetched_from_where_the_registry_says(monkeypatch):
    class Fetched(Exception):
        pass

    def open_checkpoint(source, key):
        raise Fetched(source)

    monkeypatch.setattr(conversion, "open_checkpoint", open_checkpoint)
    with pytest.raises(Fetched, match=r"^hf://OpenGVLab/.*/S14_ft_k710_f8/pytorch_model\.bin$"):
        prepare([], Request(release="internvideo2-s14-k710"))


def test_progress_adds_up_to_the_bytes_of_the_checkpoint(checkpoint, options, tmp_path):
    file, state = checkpoint("linear")
    prepared = prepare([file], Request(options=options))
    seen = []
    conversion.write(prepared, tmp_path / "model", seen.append)
    assert sum(seen) == prepared.nbytes == sum(array.nbytes for array in state.values())
    # Checksums are taken on request only.
    (source,) = read_description(tmp_path / "model")["source"]["files"]
    assert "sha256" not in source
