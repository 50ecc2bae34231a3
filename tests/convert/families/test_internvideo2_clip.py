"""InternVideo2-CLIP, put together from the files of its towers and what adds to them."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest
import safetensors.numpy

from internvideo_jax import saved_model
from internvideo_jax.convert import library
from internvideo_jax.convert.engine import conversion, registry
from internvideo_jax.convert.engine.misfit import CheckpointMisfit
from internvideo_jax.convert.engine.plan import plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.state_dict import to_state_dict, to_tree
from internvideo_jax.convert.engine.upstream import infer_config, to_upstream
from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.models import internvideo2_clip
from internvideo_jax.nn.lora import LoRAConfig
from tests.convert.clip_files import as_mobileclip, split
from tests.small_models import INTERNVIDEO2_CLIP, STAGE2, fold_lora

LLAMA, MOBILECLIP = INTERNVIDEO2_CLIP["llama"], INTERNVIDEO2_CLIP["mobileclip"]
LORA = LoRAConfig(rank=3, alpha=6.0, dropout_rate=0.1)
CONFIGS = {
    **INTERNVIDEO2_CLIP,
    "separable": dataclasses.replace(
        LLAMA,
        vision=dataclasses.replace(
            LLAMA.vision, position_embedding="separable", image_positions="spatial"
        ),
    ),
    "adapted": dataclasses.replace(
        LLAMA,
        text=dataclasses.replace(LLAMA.text, lm=dataclasses.replace(LLAMA.text.lm, lora=LORA)),
    ),
}
RELEASED = ("1b", "6b", "s14", "b14", "l14")


def shapes(*states):
    return [{key: x.shape for key, x in state.items()} for state in states]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_read_and_written_to_the_bit(name, make_state):
    config = CONFIGS[name]
    state = make_state(config, "module.")
    stored = json.loads(json.dumps(to_upstream(config)))
    found = recognize(*shapes(state))
    made = plan(found, infer_config(found, stored=stored))
    assert made.config == config
    written = to_state_dict(to_tree(state, made), made)
    assert written.keys() == state.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)


@pytest.mark.parametrize("size", RELEASED)
def test_released_models_are_read_from_their_tensors_but_for_the_drop_path(size, shapes_of):
    config = getattr(internvideo2_clip, f"internvideo2_clip_{size}")()
    rate = config.vision.drop_path_rate
    found = infer_config(
        recognize(shapes_of(config)), given={"vision_encoder.drop_path_rate": rate}
    )
    assert found == config


@pytest.fixture
def parts(make_state):
    """The files of towers and what adds to them, by the text tower: the add-on is the last."""

    def made(name):
        config = INTERNVIDEO2_CLIP[name]
        whole = make_state(config)
        if name == "mobileclip":
            whole = {as_mobileclip(key): x for key, x in whole.items()}
        return config, whole, split(whole, is_small=name == "mobileclip")

    return made


@pytest.mark.parametrize("name", INTERNVIDEO2_CLIP)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[::2])
@pytest.mark.parametrize("architecture", [None, "internvideo2_clip"])
def test_three_files_make_one_model_in_whatever_order(name, order, architecture, parts):
    config, whole, files = parts(name)
    files = [files[number] for number in order]
    found = recognize(*shapes(*files), architecture=architecture)
    made = plan(found, infer_config(found, stored=to_upstream(config)))
    assert made.config == config
    state = {made.names[key]: files[number][name] for key, (number, name) in made.sources.items()}
    tree = to_tree(state, made)
    params = tree["params"]
    # The add-on counts, wherever it comes.
    np.testing.assert_array_equal(params["temperature"], whole["temp"] + 1)
    bias = whole["vision_encoder.clip_projector.cross_attn.proj.bias"]
    np.testing.assert_array_equal(params["vision"]["pooler"]["proj"]["bias"], bias + 1)
    np.testing.assert_array_equal(params["vision"]["cls_token"], whole["vision_encoder.cls_token"])
    report = made.report([str(number) for number in order])["sources"]
    assert set(report["2"]) == files[order.index(2)].keys()
    assert sum(map(len, report.values())) == len(whole)
    assert made.ignored.keys() == found.keys.keys() - {*made.loaded_keys}
    # Written back, it is as one file of upstream's class.
    assert to_state_dict(tree, made).keys() == whole.keys()


def test_what_is_missing_is_named(parts):
    config, _, (video, text, addon) = parts("llama")
    stored = to_upstream(config)

    def made_of(*files):
        found = recognize(*shapes(*files))
        return plan(found, infer_config(found, stored=stored))

    with pytest.raises(CheckpointMisfit) as caught:
        made_of(video, text)
    # The temperature of stage 2 is another one.
    assert list(caught.value.missing) == ["temp"]
    frequencies = "text_encoder.transformer.layers.0.self_attn.rotary_emb.inv_freq"
    with pytest.raises(
        ValueError, match=r"for vision_encoder\.\* .*stage 2.* and text_encoder\.\*"
    ):
        made_of(addon | {frequencies: np.zeros(2)})
    with pytest.raises(ValueError, match=r"InternVL-C's file or that of MobileCLIP"):
        recognize(*shapes(video, addon), architecture="internvideo2_clip")
    # Upstream leaves such a tensor at random values.
    del text["transformer.layers.1.self_attn.q_proj.weight"]
    with pytest.raises(CheckpointMisfit) as caught:
        made_of(video, text, addon)
    key = "text_encoder.transformer.layers.1.self_attn.q_proj.weight"
    assert list(caught.value.missing) == [key]
    config, _, (video, text, addon) = parts("mobileclip")
    stored = to_upstream(config)
    with pytest.raises(CheckpointMisfit) as caught:
        made_of(video, text)
    assert "vision_align.1.weight" in caught.value.missing


def test_a_stage_2_file_alone_stays_one(make_state):
    state = make_state(STAGE2["visual"])
    assert recognize(*shapes(state)).kind == "visual"


@pytest.mark.parametrize("spelling", ["", ".base_layer"])
@pytest.mark.parametrize("inner", ["", "base_model.model."])
def test_adapters_of_either_spelling_are_folded_or_kept(spelling, inner, parts, make_state):
    adapted = CONFIGS["adapted"]
    _, _, (video, text, addon) = parts("llama")
    learned = {k: x for k, x in make_state(adapted).items() if ".lora_" in k}
    for key, x in learned.items():
        spelled = key.replace(".weight", ".default.weight")
        addon[spelled.replace("transformer.", f"transformer.{inner}")] = x
    bases = {key.partition(".lora_")[0].removeprefix("text_encoder.") for key in learned}
    text = {
        key.replace(".weight", f"{spelling}.weight") if key[: -len(".weight")] in bases else key: x
        for key, x in text.items()
    }
    files = [video, text, addon]

    def params_of(**options):
        found = recognize(*shapes(*files))
        stored = to_upstream(adapted) | {f"text_encoder.{n}": x for n, x in options.items()}
        made = plan(found, infer_config(found, stored=stored))
        state = {
            made.names[key]: files[number][name] for key, (number, name) in made.sources.items()
        }
        return to_tree(state, made)["params"]["text"]["lm"]["blocks"]

    live, folded = params_of(keep_lora=True), params_of(keep_lora=False)
    assert "lora_a" in live["attn"]["q"]
    ours = fold_lora(live, LORA)
    assert "lora_a" not in folded["attn"]["q"]
    for name in ("q", "k", "v"):
        np.testing.assert_allclose(
            ours["attn"][name]["kernel"], folded["attn"][name]["kernel"], rtol=1e-5, atol=1e-5
        )


VOCABULARY = b"a vocabulary"


@pytest.fixture
def release(hub, parts, monkeypatch, tmp_path):
    """A release of three files and a vocabulary that the hub on this machine has."""
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "home"))
    config, _, files = parts("llama")
    names = ("video", "text", "addon")
    metadata = {"config": json.dumps(to_upstream(config))}
    for name, state in zip(names, files, strict=True):
        hub.files[f"{name}.safetensors"] = safetensors.numpy.save(state, metadata)
    hub.files["other/tokenizer.model"] = VOCABULARY
    made = registry.Released(
        "tiny-clip",
        "internvideo2_clip",
        {"vision.width": 32, "text.lm.width": 16},
        "owner/name",
        "addon.safetensors",
        adds_to=tuple(
            registry.HubFile("owner/name", f"{name}.safetensors", f"licence of {name}")
            for name in names[:2]
        ),
        tokenizer=(
            registry.HubFile(
                "owner/name", "other/tokenizer.model", "MIT", hashlib.sha256(VOCABULARY).hexdigest()
            ),
        ),
        changes={"num_frames": 4},
    )
    monkeypatch.setattr(registry, "releases", lambda: (made,))
    return made


def test_a_release_is_fetched_with_all_that_it_adds_to(release, hub, capsys):
    directory = library.model_directory("tiny-clip")
    model = saved_model.load(directory)
    # Its clips are longer than those of the file that it adds to.
    assert model.config == dataclasses.replace(
        LLAMA, vision=dataclasses.replace(LLAMA.vision, num_frames=4)
    )
    assert model.preprocessing.video.num_frames == 4
    assert model.preprocessing.video.resize == "bicubic_square"
    assert model.preprocessing.text.prompt == "summarize:"
    assert model.tokenizer_files["tokenizer.model"].read_bytes() == VOCABULARY
    assert model.metadata["source"]["release"]["licences"] == {
        "owner/name/video.safetensors": "licence of video",
        "owner/name/text.safetensors": "licence of text",
        "owner/name/other/tokenizer.model": "MIT",
        "owner/name/addon.safetensors": registry.LICENCE,
    }
    assert set(hub.requested) == set(hub.files)
    assert "video.safetensors, hf://owner/name/text.safetensors" in capsys.readouterr().err


def test_a_vocabulary_may_be_ones_own_and_must_not_be_another(release, hub, tmp_path):
    request = conversion.Request(release="tiny-clip")
    hub.files["other/tokenizer.model"] = b"another"
    with pytest.raises(CheckpointError, match=r"SHA-256 .*--tokenizer=FOLDER with a tokenizer\.mo"):
        conversion.prepare([], request)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer.model").write_bytes(b"own")
    request = dataclasses.replace(request, tokenizer=tmp_path / "own")
    prepared = conversion.prepare([], request)
    assert prepared.tokenizer["tokenizer.model"].read_bytes() == b"own"
    addon, *_ = [line for line in prepared.summary() if line.startswith("addon")]
    assert addon == "addon.safetensors: 15 tensors"


def test_files_of_another_release_are_refused(release, parts, tmp_path):
    _, _, files = parts("mobileclip")
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    metadata = {"config": json.dumps(to_upstream(MOBILECLIP))}
    for path, state in zip(paths, files, strict=True):
        safetensors.numpy.save_file(state, path, metadata)
    with pytest.raises(ValueError, match=r"tiny-clip to have text\.lm\.width 16, found None"):
        conversion.prepare(paths, conversion.Request(release="tiny-clip"))
