"""Features of windows, of layers, of other crops, and embeddings."""

import dataclasses

import jax
import numpy as np
import pytest

from internvideo_jax.data.synthetic import scenes
from internvideo_jax.data.windows import Windows
from internvideo_jax.evaluation.features import FailedClip, FailedWindow, extract_features
from internvideo_jax.evaluation.window_features import WindowFeatures, extract_windows
from internvideo_jax.preprocessing import normalize
from tests.small_models import clip_model, clip_stage2


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds of 25 frames, wider than high."""
    path = tmp_path_factory.mktemp("video") / "long.mp4"
    frames = scenes.render(scenes.Scene("ring", "blue", "left"), 50, size=64)
    scenes.write_video(path, frames[:, :40])
    return path


@pytest.fixture(scope="module")
def stage2():
    return clip_model(clip_stage2("visual"))


def test_windows_have_features_of_their_own_frames(encoder, video, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.touch()
    results = list(extract_windows([video, bad, video], encoder, Windows(1, 0.5), batch_size=4))
    assert [type(result) for result in results] == [WindowFeatures] * 3 + [FailedClip] + [
        WindowFeatures
    ] * 3
    assert [(r.start, r.end) for r in results[:3]] == [(0, 1), (0.5, 1.5), (1, 2)]
    assert results[3].source == str(bad)
    window = results[1]
    np.testing.assert_allclose(window.timestamps, window.frame_indices / 25)
    assert (window.frame_indices >= 12).all()
    (whole,) = extract_windows([video], encoder, Windows(9, 9))
    (clip,) = extract_features([video], encoder)
    np.testing.assert_allclose(whole.features, clip.features, atol=1e-5)
    assert np.abs(whole.features - window.features).max() > 1e-3


def test_windows_without_finite_features_are_failures(encoder, video):
    variables = jax.tree.map(lambda x: x * np.nan, encoder.variables)
    broken = dataclasses.replace(encoder, variables=variables)
    results = list(extract_windows([video], broken, Windows(1, 1)))
    assert [type(result) for result in results] == [FailedWindow] * 2
    assert (results[1].start, results[1].end) == (1, 2)


def test_tokens_of_a_layer_are_its_output(encoder, video):
    (last,) = extract_features([video], encoder, kind="tokens")
    depth = encoder.config.depth
    (same,) = extract_features([video], encoder, kind="tokens", layer=depth - 1)
    np.testing.assert_allclose(same.features, last.features, atol=1e-5)
    (first,) = extract_features([video], encoder, kind="tokens", layer=0)
    clip = normalize(first.clip.frames[None], encoder.preprocessing.video)
    apply = jax.jit(encoder.module.apply, static_argnames="hidden_layers")
    output = apply(encoder.variables, clip, hidden_layers=(0,))
    np.testing.assert_allclose(first.features, output.hidden_states[0, 0], atol=1e-5)
    with pytest.raises(ValueError, match=f"block from 0 to {depth - 1}, found {depth}"):
        extract_features([video], encoder, kind="tokens", layer=depth)
    with pytest.raises(ValueError, match='kind="tokens" with a layer'):
        extract_features([video], encoder, layer=0)


def test_crops_show_other_parts_of_frames(encoder, video):
    def clip(crop):
        (result,) = extract_features([video], encoder, crop=crop, batch_size=2)
        return result

    whole, center, three = map(clip, ("squash", "center", "three"))
    np.testing.assert_array_equal(center.features, clip(None).features)
    assert (whole.clip.frames != center.clip.frames).any()
    # The middle one of the three squares, of which the features are the mean.
    assert three.clip.frames.shape == center.clip.frames.shape
    assert np.abs(three.features - center.features).max() > 1e-4


def test_embeddings_are_what_the_model_compares_with_texts(encoder, stage2, video):
    (clip,) = extract_features([video], stage2, kind="embedding")
    assert clip.grid is None
    frames = normalize(clip.clip.frames[None], stage2.preprocessing.video)
    encode = jax.jit(lambda v, x: stage2.module.apply(v, x, method="encode_video"))
    output = encode(stage2.variables, frames)
    np.testing.assert_allclose(clip.features, output.embedding[0], atol=1e-5)
    with pytest.raises(ValueError, match="compares clips with texts, found VideoViT"):
        extract_features([video], encoder, kind="embedding")
    (pooled,) = extract_features([video], stage2)
    assert pooled.grid is not None
