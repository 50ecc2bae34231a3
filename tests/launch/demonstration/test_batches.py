import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.launch.demonstration import batches
from internvideo_jax.launch.demonstration.clips import Clips
from internvideo_jax.preprocessing import VideoPreprocessing, normalize


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (10, 4, 8, 8, 3), np.uint8)
    return Clips(video, np.arange(10, dtype=np.int32) % 3, np.arange(10, dtype=np.int32), [])


def take(make, start, count):
    iterator = make(start)
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


MAKERS = {
    "images": lambda clips: batches.image_batches(clips, 4, seed=1),
    "motions": lambda clips: batches.motion_batches(clips, 4, seed=1),
    "cached": lambda clips: batches.cached_batches(
        clips, {"targets/x": np.arange(10.0)[:, None]}, 4, seed=1
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_gives_the_same_batch_wherever_the_run_began(clips, name):
    make = MAKERS[name](clips)
    whole, later = take(make, 0, 6), take(make, 4, 2)
    for one, other in zip(whole[4:], later, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    assert not np.array_equal(whole[0]["video"], whole[1]["video"])


def test_every_clip_comes_once_per_epoch(clips):
    index = np.concatenate([batch["index"] for batch in take(MAKERS["motions"](clips), 0, 5)])
    assert sorted(index[:10]) == sorted(index[10:]) == list(range(10))
    assert index[:10].tolist() != index[10:].tolist()


def test_fields_belong_to_the_same_clips(clips):
    (batch,) = take(MAKERS["motions"](clips), 0, 1)
    expected = normalize(jnp.asarray(clips.video[batch["index"]]), VideoPreprocessing())
    np.testing.assert_allclose(batch["video"], expected, atol=1e-6)
    np.testing.assert_array_equal(batch["label"], clips.motions[batch["index"]])
    (batch,) = take(MAKERS["images"](clips), 0, 1)
    np.testing.assert_array_equal(batch["label"], clips.looks[batch["index"]])
    frames = batches.normalized(clips.video[batch["index"]])
    assert batch["video"].shape == (4, 1, 8, 8, 3)
    for image, of_clip in zip(batch["video"], frames, strict=True):
        assert any(np.array_equal(image[0], frame) for frame in of_clip)
    (batch,) = take(MAKERS["cached"](clips), 0, 1)
    np.testing.assert_array_equal(batch["targets/x"][:, 0], batch["index"])
    np.testing.assert_array_equal(batch["video"], clips.video[batch["index"]])
