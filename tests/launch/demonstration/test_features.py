import jax
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.configs.demo import common
from internvideo_jax.launch.demonstration import baseline, features, runs
from internvideo_jax.preprocessing import VideoPreprocessing, normalize

# Compiling teachers and student takes longest.
pytestmark = pytest.mark.slow

VIDEO = np.random.default_rng(0).integers(0, 256, (6, 8, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Saved models of the fast demo, by run."""
    folder = tmp_path_factory.mktemp("untrained")
    for seed, name in enumerate(name for name in runs.CONFIGS if name != "stage 2"):
        runs.save_untrained(folder / name, runs.recipe(name, "fast").stage, seed)
    return folder


@pytest.fixture(scope="module")
def stage():
    return runs.recipe("stage 1", "fast").stage


@pytest.fixture(scope="module")
def targets(untrained):
    size = common.SIZES["fast"]
    found = features.teacher_features(
        size, untrained / "image teacher", untrained / "video teacher", VIDEO
    )
    return {f"targets/{name}": array for name, array in found.items()}


def test_cached_features_are_what_the_stage_takes(stage, targets):
    example = stage.example_batch(len(VIDEO))
    assert {"video", *targets} == set(example)
    for name, array in targets.items():
        assert (array.shape, array.dtype) == (example[name].shape, example[name].dtype)
        if name != "targets/attention":
            np.testing.assert_allclose(np.linalg.norm(array, axis=-1), 1, atol=1e-5)


def test_image_features_are_those_of_the_first_frame_of_each_tubelet(targets, untrained):
    module, variables = features._load(untrained / "image teacher")
    frames = normalize(VIDEO[:, ::2].reshape(24, 1, 32, 32, 3), VideoPreprocessing())
    encoder, variables = models.video_encoder(module, variables)
    output = encoder.apply(variables, frames, hidden_layers=(0, 1), return_pooler_attention=True)
    attention = np.asarray(output.pooler_attention)[:, 1:].reshape(6, 4, 16)
    np.testing.assert_allclose(targets["targets/attention"], attention, atol=1e-5)
    patches = np.asarray(output.hidden_states)[:, :, 1:].reshape(2, 6, 64, 32).swapaxes(0, 1)
    centred = patches - patches.mean(0)
    centred /= np.linalg.norm(centred, axis=-1, keepdims=True)
    np.testing.assert_allclose(targets["targets/clip_middle"][:, :, 1:], centred, atol=1e-3)


def test_frozen_image_towers_see_one_frame_of_each_tubelet(stage):
    """The same rule inside the stage: later frames of a tubelet do not change its features."""
    assert stage.teacher_stride == 2
    rng = np.random.default_rng(0)
    modules = {
        "clip_teacher": models.Teacher(stage.teachers[0].config),
        "mae_teacher": models.VideoMAETeacher(stage.teachers[1].config),
    }
    variables = {
        name: jax.tree.map(
            lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), models.abstract_variables(module)
        )
        for name, module in modules.items()
    }
    changed = VIDEO[:1].copy()
    changed[:, 1::2] = 0
    encode = jax.jit(stage.features)
    one, other = (encode(variables, {"video": video}) for video in (VIDEO[:1], changed))
    np.testing.assert_array_equal(one["targets/clip_middle"], other["targets/clip_middle"])
    assert one["targets/attention"].shape == (1, 4, 16)
    assert np.abs(one["targets/mae"] - other["targets/mae"]).max() > 1e-3


def test_probe_features_of_frames_are_averaged(untrained):
    clip = features.probe_features(untrained / "stage 1", VIDEO[:2])
    still = features.probe_features(untrained / "image teacher", VIDEO[:2])
    assert clip.shape == still.shape == (2, 3 * 32)
    frames = VIDEO[:2].reshape(16, 1, 32, 32, 3)
    each = features.probe_features(untrained / "image teacher", frames)
    np.testing.assert_allclose(still, each.reshape(2, 8, -1).mean(1), atol=1e-5)
    assert features.class_scores(untrained / "image teacher", VIDEO[:2]).shape == (2, 48)


def test_the_untrained_model_is_where_training_starts(untrained):
    stage = runs.recipe("stage 1", "fast", stage={"initial": str(untrained / "stage 1")}).stage
    _, saved = features._load(untrained / "stage 1")
    zeros = jax.tree.map(np.zeros_like, saved)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    initial = stage.load_initial(jax.device_put(zeros, one_device))
    jax.tree.map(np.testing.assert_array_equal, dict(initial), saved)


def test_kernels_start_from_their_fan_in(untrained):
    _, variables = features._load(untrained / "stage 1")
    blocks = variables["params"]["encoder"]["blocks"]
    assert np.std(blocks["attn"]["qkv"]["kernel"]) == pytest.approx(32**-0.5, rel=0.1)
    # The second layer's output shrinks with the depth, as in the released initialisation.
    first = blocks["mlp"]["fc2"]["kernel"][0]
    assert np.std(first) == pytest.approx(128**-0.5 / 2**0.5, rel=0.1)
    assert np.std(variables["params"]["clip_decoder"]["head"]["kernel"]) == pytest.approx(
        0.02, rel=0.1
    )


def test_no_constant_is_better_than_the_baseline(stage, targets):
    """The same number by descent over constants, on the batches' own kept tokens."""
    batch = {"video": VIDEO, **targets}
    losses = baseline.constant_losses(stage, iter([batch]), 1)
    weights_ = stage.weights
    assert losses["loss"] == pytest.approx(sum(weights_[n] * losses[n] for n in weights_))
    inputs = {name: batch[name] for name in stage.example_batch(1)}
    drawn = jax.device_get(stage.targets({}, inputs, jax.random.key(0)))
    final = drawn["clip_final"]
    constants = np.random.default_rng(0).normal(size=(200, final.shape[-1]))
    constants /= np.linalg.norm(constants, axis=-1, keepdims=True)
    others = 2 - 2 * (constants @ final.T).mean(1)
    assert losses["clip_final"] <= others.min()
    # Of middle features by hand: every (layer, place) has a constant of its own.
    total = 0.0
    for layer in range(2):
        for place in range(stage.config.encoder.num_tokens):
            chosen = drawn["clip_middle"][:, layer][drawn["kept"] == place]
            total += np.linalg.norm(chosen.sum(0)) if len(chosen) else 0.0
    rows = drawn["clip_middle"][..., 0].size
    assert losses["clip_middle"] == pytest.approx(2 - 2 * total / rows, abs=1e-5)
