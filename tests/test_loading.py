"""`internvideo_jax.load` and the object that it gives."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import internvideo_jax as ivj
from internvideo_jax import loading, saved_model
from internvideo_jax.data.decode.audio import read_audio
from internvideo_jax.data.decode.video import VideoReader
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.data.transforms.filterbank import audio_input
from internvideo_jax.evaluation.features import FailedClip, extract_features
from internvideo_jax.loading import Model
from internvideo_jax.models import VideoClassifierConfig, abstract_variables, build
from internvideo_jax.preprocessing import AudioPreprocessing, Preprocessing, TextPreprocessing
from tests.small_models import BEATS, CLIP_ENCODER, clip_model, noise_like

CLASSES = ("going left", "going right", "growing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = clip_model(VideoClassifierConfig(CLIP_ENCODER, num_classes=3))
    path = tmp_path_factory.mktemp("models") / "tiny"
    saved_model.save(
        path, "video_classifier", made.config, made.preprocessing, made.variables, classes=CLASSES
    )
    return path


@pytest.fixture(scope="module")
def model(folder):
    return ivj.load(folder)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"{motion}.mp4" for motion in ("left", "right", "growing")]
    for path in paths:
        scene = scenes.Scene("ring", "blue", path.stem)
        # One of them with sound.
        sound = scenes.soundtrack(scene, 0.1) if path == paths[0] else None
        scenes.write_video(path, scenes.render(scene, 12, size=48), sound=sound)
    return paths


def test_the_object_has_all_of_a_saved_model(model, folder):
    saved = saved_model.load(folder)
    assert isinstance(model, saved_model.SavedModel)
    assert (model.classes, model.config) == (CLASSES, saved.config)
    assert (model.preprocessing, model.metadata) == (saved.preprocessing, saved.metadata)


def test_options_of_loading_pass_through(folder):
    model = ivj.load(folder, dtype="bfloat16", storage="float16", check=True)
    assert model.config.encoder.dtype == "bfloat16"
    assert model.variables["params"]["head"]["kernel"].dtype == jnp.float16


def test_what_is_preprocessed_is_ready_for_the_module(model, videos):
    video = model.preprocess(videos[0])
    assert (video.shape, video.dtype) == ((1, 4, 32, 32, 3), np.float32)
    output = jax.jit(model.module.apply)(model.variables, video)
    scores = dict(model.predict(videos[0]))
    for name, probability in zip(CLASSES, jax.nn.softmax(output.logits[0]), strict=True):
        assert scores[name] == pytest.approx(float(probability), abs=1e-5)
    np.testing.assert_allclose(model.encode(videos[0]), output.pooled[0], atol=1e-5)
    (result,) = extract_features(videos[:1], model)
    mean, std = (np.array(x) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose(video[0], (result.clip.frames / 255 - mean) / std, atol=1e-5)


def test_frames_in_memory_are_sampled_like_those_of_files(model, videos):
    with VideoReader(videos[0]) as reader:
        frames = reader.read(range(reader.num_frames))
    np.testing.assert_array_equal(model.preprocess(frames), model.preprocess(videos[0]))
    np.testing.assert_array_equal(model.encode(frames), model.encode(videos[0]))
    assert model.predict(frames) == model.predict(videos[0])
    assert model.preprocess(frames, num_frames=6).shape == (1, 6, 32, 32, 3)


def test_lists_give_lists_whatever_the_batches(model, videos):
    assert model.preprocess(videos).shape == (3, 4, 32, 32, 3)
    features = model.encode(videos, batch_size=2)
    for path, row in zip(videos, features, strict=True):
        np.testing.assert_array_equal(row, model.encode(path))
    assert model.encode(videos[:1], "tokens")[0].shape == (33, 32)
    best = model.predict(iter(videos), top=1, batch_size=2)
    assert [scores for (scores,) in best] == [model.predict(path)[0] for path in videos]
    frames = np.zeros((2, 5, 40, 50, 3), np.uint8)
    assert len(model.predict(frames)) == len(model.encode(frames)) == 2
    assert model.predict([]) == model.encode([]) == []


def test_a_clip_of_a_list_may_fail_and_one_alone_raises(model, videos, tmp_path):
    absent = tmp_path / "none.mp4"
    for method in (model.predict, model.encode):
        results = method([videos[0], absent, videos[1]])
        assert [isinstance(result, FailedClip) for result in results] == [False, True, False]
        assert results[1].source == str(absent)
        with pytest.raises(ValueError, match=f"{absent}: expected a video file"):
            method(absent)
    with pytest.raises(ValueError, match=f"{absent}: expected a video file"):
        model.preprocess([videos[0], absent])
    with pytest.raises(ValueError, match="at least one clip"):
        model.preprocess([])


def test_several_views_are_averaged(model, videos):
    one = dict(model.predict(videos[0]))
    several = dict(model.predict(videos[0], segments=2, crops=3, batch_size=4))
    assert several.keys() == one.keys()
    assert sum(several.values()) == pytest.approx(1, abs=1e-5)
    assert several != one


def test_wrong_frames_are_refused_before_anything_runs(model, videos):
    for method in (model.predict, model.encode, model.preprocess):
        with pytest.raises(ValueError, match=r"clip 1: expected uint8.*moveaxis"):
            method([videos[0], np.zeros((4, 3, 32, 32), np.uint8)])


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True])
@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("predict", "top"),
        ("predict", "num_frames"),
        ("predict", "segments"),
        ("predict", "crops"),
        ("predict", "batch_size"),
        ("encode", "num_frames"),
        ("encode", "batch_size"),
        ("preprocess", "num_frames"),
    ],
)
def test_what_counts_something_is_a_whole_number(model, videos, method, argument, value):
    expected = f"^{argument}: expected a whole number of at least 1, found {value!r}"
    with pytest.raises(ValueError, match=expected):
        getattr(model, method)(videos[0], **{argument: value})


@pytest.mark.parametrize(
    "views", [{"num_frames": 10**9}, {"crops": 10**6}, {"segments": 10**6, "crops": 3}]
)
def test_views_that_fill_the_memory_are_refused(model, videos, views):
    with pytest.raises(ValueError, match=r"expected views of a clip of at most .* pixels"):
        model.predict(videos[0], **views)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "fp16"}, ValueError, "a dtype of float32, .*found 'fp16'"),
        ({"dtype": 3}, ValueError, "a dtype of float32, .*found '3'"),
        ({"storage": "int4"}, ValueError, "a storage of .*found 'int4'.*did you mean 'int8'"),
        ({"mesh": "data"}, TypeError, "mesh: expected Mesh .*found str"),
        ({"check": "no"}, TypeError, "check: expected bool, found str"),
        ({"name": None}, TypeError, "name: expected str or PathLike, found NoneType"),
        ({"name": "/no/model"}, ValueError, "expected the folder .*found nothing at '/no/model'"),
    ],
)
def test_wrong_options_of_loading_are_named(folder, options, error, message):
    with pytest.raises(error, match=message):
        ivj.load(**{"name": folder} | options)


@pytest.mark.slow
def test_towers_of_sound_take_files_with_sound(videos):
    module = build(BEATS)
    variables = noise_like(abstract_variables(module), 0)
    size = AudioPreprocessing(num_mels=BEATS.num_mels, num_frames=BEATS.num_frames)
    model = Model(module, variables, BEATS, Preprocessing(audio=size), {})
    sound = model.preprocess(videos[0])
    np.testing.assert_array_equal(sound, audio_input(read_audio(videos[0]), size)[None])
    output = jax.jit(module.apply)(variables, sound)
    np.testing.assert_allclose(model.encode(videos[0]), output.pooled[0], atol=1e-5)
    failed, tokens = model.encode([videos[1], videos[0]], "tokens")
    assert isinstance(failed, FailedClip)
    np.testing.assert_allclose(tokens, output.tokens[0], atol=1e-5)
    with pytest.raises(ValueError, match="clip 0: expected the path of a file with sound"):
        model.encode(np.zeros(16_000, np.float32))


def test_models_that_take_neither_videos_nor_sound_say_so(model):
    text = TextPreprocessing("wordpiece", ("vocab.txt",), 8)
    tower = dataclasses.replace(model, preprocessing=Preprocessing(text=text))
    for method in (tower.preprocess, tower.encode):
        with pytest.raises(ValueError, match="found one that takes texts"):
            method("clip.mp4")
    with pytest.raises(ValueError, match='"pooled" or "tokens"'):
        model.encode("clip.mp4", "mean")


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (SimpleNamespace(platform="tpu"), "bfloat16"),
        (SimpleNamespace(platform="gpu", compute_capability="9.0"), "bfloat16"),
        (SimpleNamespace(platform="gpu", compute_capability="7.5"), "float16"),
        (SimpleNamespace(platform="cpu"), "float32"),
    ],
    ids=lambda value: getattr(value, "platform", value),
)
def test_the_dtype_is_what_suits_the_device_unless_named(folder, monkeypatch, device, dtype):
    monkeypatch.setattr(loading, "_device", lambda mesh: device)
    found = ivj.load(folder)
    assert found.config.encoder.dtype == dtype
    assert found.variables["params"]["head"]["kernel"].dtype == dtype
    assert ivj.load(folder, dtype="float32").config.encoder.dtype == "float32"
    assert saved_model.load(folder).config.encoder.dtype == "float32"


def test_on_cpus_half_precision_is_computed_in_float32(folder, tmp_path):
    half = saved_model.load(folder, dtype="bfloat16")
    saved_model.save(
        tmp_path / "half", "video_classifier", half.config, half.preprocessing, half.variables
    )
    assert saved_model.load(tmp_path / "half").config.encoder.dtype == "bfloat16"
    found = ivj.load(tmp_path / "half", storage="bfloat16")
    assert found.config.encoder.dtype == "float32"
    assert found.variables["params"]["head"]["kernel"].dtype == jnp.bfloat16
    assert ivj.load(tmp_path / "half").variables["params"]["head"]["kernel"].dtype == jnp.float32
