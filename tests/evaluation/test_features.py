"""Features of video files."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from internvideo_jax.data.decode.video import VideoReader
from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.evaluation.features import FailedClip, extract_features
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing, normalize
from tests.small_models import clip_model, clip_viclip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    motions = ("left", "right", "up", "down", "growing")
    paths = [folder / f"{motion}.mp4" for motion in motions]
    for number, (path, motion) in enumerate(zip(paths, motions, strict=True)):
        scene = synthetic.Scene("circle", "red", motion)
        synthetic.write_video(path, synthetic.render(scene, num_frames=12 + number, size=48))
    return paths


def test_features_are_those_of_the_model(encoder, videos):
    result = next(iter(extract_features(videos[1:2], encoder, kind="tokens")))
    frames = result.clip.frames
    assert frames.shape == (4, 32, 32, 3)
    assert frames.dtype == np.uint8
    video = normalize(frames[None], encoder.preprocessing.video)
    output = jax.jit(encoder.module.apply)(encoder.variables, video)
    np.testing.assert_allclose(result.features, output.tokens[0], atol=1e-5)
    assert result.features.dtype == np.float32
    assert result.grid == (2, 4, 4)
    assert len(result.features) == 1 + np.prod(result.grid)
    assert result.clip.num_frames == 13
    # Segments of 3 frames, their middles at 1.
    assert result.clip.frame_indices.tolist() == [1, 4, 7, 10]
    np.testing.assert_allclose(result.clip.timestamps, np.array([1, 4, 7, 10]) / 25)
    (pooled,) = extract_features(videos[1:2], encoder)
    np.testing.assert_allclose(pooled.features, output.pooled[0], atol=1e-5)


def test_neither_batch_size_nor_threads_matter(encoder, videos):
    expected = np.stack([r.features for r in extract_features(videos, encoder)])
    results = list(extract_features(videos, encoder, batch_size=2, num_threads=3))
    assert [result.clip.source for result in results] == list(map(str, videos))
    np.testing.assert_allclose([r.features for r in results], expected, atol=1e-5, rtol=0)
    # Clips mixed up or lost would show: they differ by a thousand times the tolerance.
    assert np.abs(expected[0] - expected[1]).max() > 1e-2


def test_composites_serve_through_their_encoder(encoder, classifier, videos):
    variables = {"params": {"encoder": encoder.variables["params"]}}
    classifier = dataclasses.replace(classifier, variables=variables)
    (result,) = extract_features(videos[:1], classifier, batch_size=1)
    (expected,) = extract_features(videos[:1], encoder, batch_size=1)
    np.testing.assert_allclose(result.features, expected.features, atol=1e-6)


def test_failures_do_not_stop_the_others(encoder, videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 100)
    results = list(extract_features([videos[0], bad, videos[1]], encoder, batch_size=2))
    (failure,) = (result for result in results if isinstance(result, FailedClip))
    assert failure.source == str(bad)
    assert failure.reason
    assert str(bad) not in failure.reason
    assert results[1] is failure
    assert [r.clip.source for r in results if r is not failure] == list(map(str, videos[:2]))


def test_features_that_are_not_finite_are_failures(encoder, videos):
    variables = jax.tree.map(lambda x: x * np.nan, encoder.variables)
    results = list(extract_features(videos[:2], dataclasses.replace(encoder, variables=variables)))
    assert [result.source for result in results] == list(map(str, videos[:2]))
    assert all("NaN" in result.reason for result in results)


def test_frames_in_memory_are_clips(encoder, videos):
    with VideoReader(videos[0]) as reader:
        frames = reader.read(range(reader.num_frames))
    of_file, of_frames = extract_features([videos[0], frames], encoder)
    np.testing.assert_array_equal(of_frames.features, of_file.features)
    assert of_frames.clip.source == "clip 1"
    assert np.isnan(of_frames.clip.timestamps).all()


def test_short_videos_repeat_frames_or_fail(encoder, tmp_path):
    path = tmp_path / "short.mp4"
    frames = synthetic.render(synthetic.Scene("ring", "blue", "left"), num_frames=3, size=48)
    synthetic.write_video(path, frames)
    # Other numbers of frames resize the positions.
    (result,) = extract_features([path], encoder, num_frames=8, kind="tokens")
    assert (result.grid, result.features.shape) == ((4, 4, 4), (65, 32))
    assert result.clip.frame_indices.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert (result.clip.num_frames, result.clip.repeated_frames) == (3, 5)
    (failure,) = extract_features([path], encoder, num_frames=8, short="error")
    assert "at least 8 frames, found 3" in failure.reason


def test_tubelets_and_patches_must_cover_the_clip(encoder, videos):
    with pytest.raises(ValueError, match=r"--frames.* multiples of 2.*found 5; take 4 or 6"):
        extract_features(videos, encoder, num_frames=5)
    size = Preprocessing(VideoPreprocessing(image_size=36, num_frames=4))
    with pytest.raises(ValueError, match=r"patch size 8.*36x36"):
        extract_features(videos, dataclasses.replace(encoder, preprocessing=size))


def test_decoding_stays_a_bounded_number_of_files_ahead(monkeypatch, encoder, videos):
    started = []
    read = VideoReader.read

    def counting(self, *args, **options):
        started.append(self)
        return read(self, *args, **options)

    monkeypatch.setattr(VideoReader, "read", counting)
    results = extract_features([videos[0]] * 100, encoder, batch_size=2, num_threads=2)
    assert started == []
    next(results)
    # Batches that wait, and what grain's threads are at.
    assert len(started) <= 20
    results.close()
    assert not any(thread.name == "data-loader" for thread in threading.enumerate())


def test_no_files_give_no_features(encoder):
    assert list(extract_features([], encoder)) == []


def test_a_viclip_serves_through_its_video_tower(videos):
    model = clip_model(clip_viclip())
    (result,) = extract_features(videos[:1], model)
    assert result.grid == (4, 4, 4)
    video = normalize(result.clip.frames[None], model.preprocessing.video)
    encode = jax.jit(lambda v, x: model.module.apply(v, x, method="encode_video"))
    expected = encode(model.variables, video).embedding[0]
    np.testing.assert_allclose(result.features, expected, atol=1e-5)
