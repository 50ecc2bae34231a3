"""Views of a clip in evaluation; upstream's pixels are in the goldens."""

import numpy as np
import pytest

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.transforms.frames import resize_short_side
from internvideo_jax.data.transforms.sampling import sample_indices
from internvideo_jax.data.transforms.views import cut_views, view_indices


def clip(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)


def views_of(frames: np.ndarray, **options: int) -> np.ndarray:
    config = DataConfig(num_frames=2, image_size=14, **options)
    return cut_views(config, np.stack([resize_short_side(frame, 14) for frame in frames]))


@pytest.mark.parametrize(("height", "width"), [(20, 33), (33, 20), (14, 14)])
def test_the_crops_of_a_clip(height, width):
    frames = clip(height, width)
    three = views_of(frames, segments=2, crops=3)
    assert three.shape == (6, 2, 14, 14, 3)
    assert three.dtype == np.uint8
    assert np.array_equal(three[3:], views_of(frames[2:], segments=1, crops=3))
    center = views_of(frames, segments=2, crops=1)
    assert np.array_equal(three[1::3], center)
    assert np.array_equal(
        views_of(frames[:, ::-1, ::-1], segments=2, crops=2)[::2], three[2::3, :, ::-1, ::-1]
    )


def test_a_single_view_is_that_of_validation():
    single = DataConfig(num_frames=8, sampling="tsn")
    assert view_indices(single, 100)[0].tolist() == sample_indices("tsn", 100, 8).tolist()
    more = DataConfig(num_frames=8, crops=3, sampling="tsn")
    assert (
        view_indices(more, 100)[0].tolist() == sample_indices("tsn", 100, 8, view=(0, 1)).tolist()
    )
