"""References against models: what is run, what is compared, what counts as agreement."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from internvideo_jax import launch, models
from internvideo_jax.convert.engine.conversion import Request, convert
from internvideo_jax.convert.engine.plan import export_plan
from internvideo_jax.convert.engine.state_dict import to_tree
from internvideo_jax.convert.engine.verify import (
    Reference,
    compare,
    find_recipe,
    load_reference,
    run_reference,
)
from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.saved_model import SavedModel, load
from tests.small_models import INTERNVIDEO2_CLIP, VICLIP

ASSETS = Path(launch.__file__).parent / "assets"
REFERENCE = ASSETS / "demo_reference.safetensors"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's model, converted from what PyTorch wrote."""
    output = tmp_path_factory.mktemp("demo") / "model"
    convert([ASSETS / "demo_checkpoint.pth"], output, Request())
    return load(output)


@pytest.fixture
def random_model(configs, make_state):
    """Makes a model with random parameters: `random_model(name)`."""

    def make(name):
        config = (configs | INTERNVIDEO2_CLIP | {"viclip": VICLIP})[name]
        variables = to_tree(make_state(config), export_plan(config))
        return SavedModel(
            models.build(config), variables, config, Preprocessing(VideoPreprocessing()), {}
        )

    return make


def test_one_wrong_weight_is_seen(demo):
    reference = load_reference(REFERENCE)
    gamma = np.array(demo.variables["params"]["encoder"]["blocks"]["ls2"]["gamma"])
    gamma[1, 5] += 0.01
    encoder = demo.variables["params"]["encoder"]
    blocks = encoder["blocks"] | {"ls2": {"gamma": gamma}}
    params = demo.variables["params"] | {"encoder": encoder | {"blocks": blocks}}
    broken = SavedModel(demo.module, {"params": params}, demo.config, demo.preprocessing, {})
    verdicts = {row.name: row.ok for row in compare(run_reference(broken, reference), reference)}
    # The first block and what precedes it are right, everything after is not.
    right = {"hidden/patch_embed", "hidden/blocks.0"}
    assert {name for name, ok in verdicts.items() if ok} <= right | {"loss_soft_ce"}
    assert not verdicts["hidden/blocks.1"]
    assert not verdicts["logits"]


def _random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_an_encoder_gives_its_hidden_states(random_model):
    shapes = {"hidden/blocks.2": (2, 65, 48), "hidden/clip_projector": (2, 20)}
    reference = Reference({"video": _random(2, 3, 4, 8, 8)}, shapes)
    values = run_reference(random_model("encoder"), reference)
    assert {name: value.shape for name, value in values.items()} == shapes


@pytest.mark.parametrize("name", [*INTERNVIDEO2_CLIP, "viclip"])
def test_clip_models_give_their_embeddings_and_what_is_inside_their_towers(name, random_model):
    model, video = random_model(name), _random(2, 2, 3, 8, 8)
    ids = np.array([[3, 9, 4, 29], [7, 2, 29, 0]])
    size = model.config.text.projection_dim
    shapes = {
        "vision_embed": (2, size), "text_embed": (2, size), "sim_cosine": (2, 2),
        "temp_after_clamp": (),
    }  # fmt: skip
    if name != "viclip":
        shapes |= {"hidden/blocks.1": (2, 9, 32), "layer_1": (2, 4, 16)}
    values = run_reference(model, Reference({"video": video, "input_ids": ids}, shapes))
    assert {name: value.shape for name, value in values.items()} == shapes
    whole = model.module.apply(model.variables, np.moveaxis(video, 2, -1), ids)
    np.testing.assert_allclose(values["sim_cosine"], whole, atol=1e-5)
    # Towers take channels before frames.
    channels_first = {"video": video.swapaxes(1, 2), "text_tokens": ids}
    for name, value in run_reference(model, Reference(channels_first, shapes)).items():
        np.testing.assert_array_equal(value, values[name])


def test_whole_models_take_frames_before_channels_when_either_could_be_meant():
    video = np.arange(9).reshape(1, 3, 3, 1, 1)
    found = find_recipe("viclip").prepare({"video": video})["video"]
    np.testing.assert_array_equal(found[0, 1].ravel(), [3, 4, 5])


def test_train_mode_uses_and_updates_batch_statistics(random_model):
    model = random_model("concat_kaiming")
    stats = model.variables["batch_stats"]["down_norm"]
    stats["var"] = np.abs(stats["var"]) + 1
    outputs = dict.fromkeys(
        ("logits", "hidden/down_norm", "buffer_after/down_norm.running_mean"), np.zeros(1)
    )
    inputs = {"video": _random(4, 3, 4, 8, 8)}
    evaluated = run_reference(model, Reference(inputs, outputs))
    trained = run_reference(model, Reference(inputs, outputs, train_mode=True))
    np.testing.assert_array_equal(evaluated["buffer_after/down_norm.running_mean"], stats["mean"])
    assert np.abs(trained["buffer_after/down_norm.running_mean"] - stats["mean"]).max() > 1e-3
    # Rows last, as in upstream's batch norm; batch statistics make each channel's mean zero.
    assert trained["hidden/down_norm"].shape == (4, 48, 2)
    np.testing.assert_allclose(trained["hidden/down_norm"].mean((0, 2)), 0, atol=1e-5)


def test_a_reference_of_another_model_is_refused(random_model):
    outputs = {"clip_middle": np.zeros(1, np.float32)}
    with pytest.raises(ValueError, match="inputs video, mask for distill_student, found video"):
        run_reference(random_model("distill"), Reference({"video": _random(1)}, outputs))
    with pytest.raises(ValueError, match="inputs video for video_vit, found input_ids"):
        run_reference(random_model("encoder"), Reference({"input_ids": _random(1)}, outputs))
    with pytest.raises(ValueError, match="can be verified .* found videomae"):
        run_reference(random_model("videomae"), Reference({"video": _random(1)}, outputs))


@pytest.mark.parametrize(
    ("ours", "theirs", "ok"),
    [
        # Errors are relative to the largest value, by default 1e-5 of it.
        ([100 + 9e-4, 9e-4], [100.0, 0.0], True),
        ([100 + 2e-3, 2e-3], [100.0, 0.0], False),
        ([1, 2], [1, 2], True),
        ([1, 3], [1, 2], False),
        # Other shapes and NaNs never agree, and nothing but zeros with zeros.
        ([1.0], [1.0, 2.0], False),
        ([1.0, np.nan], [1.0, 2.0], False),
        ([1.0, np.inf], [1.0, 2.0], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 1e-30], [0.0, 0.0], False),
    ],
)
def test_what_counts_as_agreement(ours, theirs, ok):
    def narrow(values):
        return np.asarray(values, np.int32 if isinstance(values[-1], int) else np.float32)

    reference = Reference({}, {"x": narrow(theirs)})
    (row,) = compare({"x": narrow(ours)}, reference)
    assert row.ok == ok
    if np.shape(ours) != np.shape(theirs) or not np.isfinite(ours).all():
        assert row.max_error == np.inf


def test_files_without_inputs_or_outputs_are_named(tmp_path):
    safetensors.numpy.save_file({"state/w": np.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="no file of reference activations"):
        load_reference(tmp_path / "weights.safetensors")


def test_the_mode_is_read_from_the_file(tmp_path):
    tensors = {"in/video": np.ones(2), "out/logits": np.ones(2)}
    for config, expected in ({"train_mode": True}, True), ({}, False):
        metadata = {"config": json.dumps(config)}
        safetensors.numpy.save_file(tensors, tmp_path / "r.safetensors", metadata)
        assert load_reference(tmp_path / "r.safetensors").train_mode is expected
