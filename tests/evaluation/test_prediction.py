"""Predictions of clips and windows."""

import dataclasses

import jax
import numpy as np
import pytest

from internvideo_jax.data.decode.video import VideoReader
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.data.transforms.frames import eval_frame
from internvideo_jax.data.transforms.sampling import sample_indices
from internvideo_jax.data.windows import Windows
from internvideo_jax.evaluation import prediction
from internvideo_jax.evaluation.features import FailedClip
from internvideo_jax.preprocessing import normalize


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    scenes.write_video(path, scenes.render(scenes.Scene("ring", "blue", "left"), 50, size=48))
    return str(path)


def test_probabilities_are_the_mean_over_the_views(classifier, video):
    views = prediction.view_config(classifier, segments=2)
    (found,) = prediction.predict_clips([video], classifier, views)
    assert (found.source, found.start, found.end) == (video, None, None)
    with VideoReader(video) as reader:
        clips = [
            reader.read(
                sample_indices("sparse", 50, 4, view=(segment, 2)),
                transform=lambda frame: eval_frame(frame, 32),
            )
            for segment in range(2)
        ]
    shown = normalize(np.stack(clips), classifier.preprocessing.video)
    logits = jax.jit(classifier.module.apply)(classifier.variables, shown).logits
    expected = jax.nn.softmax(logits).mean(0)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert found.probabilities.dtype == np.float32


def test_windows_are_clips_of_their_own(classifier, video):
    views = prediction.view_config(classifier)
    found = list(prediction.predict_windows(video, classifier, views, Windows(1.0, 0.5)))
    assert [(p.start, p.end) for p in found] == [(0, 1), (0.5, 1.5), (1, 2)]
    with VideoReader(video, start=0.5, end=1.5) as reader:
        frames = reader.read(range(reader.num_frames))
    (alone,) = prediction.predict_clips([frames], classifier, views)
    np.testing.assert_allclose(found[1].probabilities, alone.probabilities, atol=1e-6)
    assert np.abs(found[0].probabilities - found[1].probabilities).max() > 1e-5


def test_what_cannot_be_read_is_reported_and_the_rest_goes_on(classifier, video, tmp_path):
    views = prediction.view_config(classifier, crops=3)
    absent = str(tmp_path / "none.mp4")
    found = list(prediction.predict_clips([absent, video], classifier, views, batch_size=2))
    assert isinstance(found[0], FailedClip)
    assert found[0].source == absent
    assert isinstance(found[1], prediction.Prediction)
    (failed,) = prediction.predict_windows(absent, classifier, views, Windows(1, 1))
    assert isinstance(failed, FailedClip)
    assert absent not in failed.reason


def test_results_that_are_not_finite_are_failures(classifier, video):
    variables = jax.tree.map(lambda x: x * np.nan, classifier.variables)
    broken = dataclasses.replace(classifier, variables=variables)
    views = prediction.view_config(broken)
    (failed,) = prediction.predict_clips([video], broken, views)
    assert "NaN" in failed.reason
    windows = list(prediction.predict_windows(video, broken, views, Windows(1, 1)))
    assert [(w.start, w.end) for w in windows] == [(0, 1), (1, 2)]
    assert all("NaN" in w.reason for w in windows)


def test_the_best_classes_come_first():
    found = prediction.Prediction("x", np.array([0.25, 0.5, 0.25], np.float32))
    assert found.best(["a", "b", "c"], 2) == [("b", 0.5), ("a", 0.25)]
    assert len(found.best(["a", "b", "c"], 9)) == 3


def test_classes_without_names_have_numbers(classifier):
    assert prediction.class_names(classifier) == ("0", "1", "2")
    named = dataclasses.replace(classifier, classes=("up", "down", "still"))
    assert prediction.class_names(named) == ("up", "down", "still")


def test_an_encoder_has_no_classes(encoder):
    with pytest.raises(ValueError, match=r"found VideoViT.*internvideo-jax extract"):
        prediction.class_names(encoder)
    with pytest.raises(ValueError, match=r"found VideoViT.*internvideo-jax extract"):
        prediction.predict_clips([], encoder, prediction.view_config(encoder))
