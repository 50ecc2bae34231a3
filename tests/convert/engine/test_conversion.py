"""Checkpoints on disk to saved models."""

import errno
import hashlib
import json
import shutil
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from internvideo_jax.convert.engine import conversion
from internvideo_jax.convert.engine.conversion import Request, convert, prepare
from internvideo_jax.convert.engine.state_dict import to_tree
from internvideo_jax.convert.engine.upstream import to_upstream
from internvideo_jax.files import DiskFullError
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


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_listed(dtype, tiny_state, options, tmp_path):
    _, state = tiny_state("linear", dtype=dtype)
    state["cls_token"][..., 3] = np.nan
    state["blocks.1.attn.qkv.weight"][5:7, 2] = -np.inf
    state["head.bias"][:2] = np.nan, np.inf
    safetensors.numpy.save_file(state, tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="in 3 tensors") as caught:
        convert([tmp_path / "tiny.safetensors"], tmp_path / "model", Request(options=options))
    for line in (
        "cls_token: 1 NaN of 48",
        "blocks.1.attn.qkv.weight: 2 infinite of 6,912",
        "head.bias: 1 NaN, 1 infinite of 7",
        "--allow_nonfinite",
    ):
        assert line in str(caught.value)
    assert not (tmp_path / "model").exists()
    request = Request(options=options, allow_nonfinite=True)
    convert([tmp_path / "tiny.safetensors"], tmp_path / "model", request)
    found = read_description(tmp_path / "model")["conversion"]["not_finite"]
    assert found.keys() == {"cls_token", "blocks.1.attn.qkv.weight", "head.bias"}
    assert np.isnan(load(tmp_path / "model").variables["params"]["head"]["bias"][0])


@pytest.mark.parametrize("how", ["file", "folder", "sequence"])
def test_classes_get_names(how, checkpoint, options, tmp_path):
    file, _ = checkpoint("linear")
    names = [f"class {i}" for i in range(7)]
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({name: i for i, name in enumerate(names)}))
    source, classes = {
        "file": (file, labels),
        "folder": (tmp_path, None),
        "sequence": (file, names),
    }[how]
    done = convert([source], tmp_path / "model", Request(options=options, classes=classes))
    assert load(tmp_path / "model").classes == tuple(names)
    assert (how == "folder") == ("names of the 7 classes from labels.json" in done.summary())


def test_label_files_that_do_not_fit_are_passed_over(checkpoint, options, tmp_path):
    file, _ = checkpoint("linear")

    def names_of(source=tmp_path, **request):
        return prepare([source], Request(options=options, **request))

    (tmp_path / "config.json").write_text(
        json.dumps({"id2label": {i: f"LABEL_{i}" for i in range(7)}})
    )
    assert names_of().classes is None
    (tmp_path / "kinetics_labels.txt").write_text("a\nb\n")
    assert names_of().classes is None
    assert "kinetics_labels.txt names 2 classes, the model has 7" in names_of().notes
    with pytest.raises(ValueError, match="7 classes, found 2"):
        names_of(classes=tmp_path / "kinetics_labels.txt")
    (tmp_path / "class_names.txt").write_text("\n".join("abcdefg"))
    assert names_of().classes == tuple("abcdefg")
    with pytest.raises(ValueError, match="'a' as number 0, found 'b'"):
        names_of(classes=tuple("bacdefg"))
    assert names_of(classes=tuple("abcdefz")).classes == tuple("abcdefz")
    # Of a new head, of a file by itself, of a model without classes.
    assert names_of(new_head=True, changes={"num_classes": 7}).classes is None
    assert names_of(file).classes is None
    with pytest.raises(ValueError, match="expected a classifier"):
        names_of(architecture="video_vit", classes=tmp_path / "class_names.txt")
    (tmp_path / "other_labels.txt").write_text("\n".join("tuvwxyz"))
    assert names_of().classes is None
    assert any("name the classes differently" in note for note in names_of().notes)


def test_a_full_disk_is_named_with_what_is_needed(checkpoint, options, tmp_path, monkeypatch):
    file, _ = checkpoint("linear")
    request = Request(options=options)
    usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(DiskFullError, match=r"kB of free disk, found 1 kB.*model'") as caught:
            convert([file], tmp_path / "model", request)
    assert caught.value.errno == errno.ENOSPC

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conversion, "write_arrays", fail)
    with pytest.raises(DiskFullError, match=r"free disk, found .*model'"):
        convert([file], tmp_path / "model", request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.safetensors"]


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
