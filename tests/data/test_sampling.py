"""Uniform sampling of frames."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_jax.data.sampling import uniform_indices

SHARED = os.environ.get("INTERNVIDEO_SHARED")


@pytest.mark.parametrize(
    ("num_frames", "wanted", "expected"),
    [
        (40, 8, [2, 7, 12, 17, 22, 26, 31, 36]),
        (300, 4, [37, 112, 187, 261]),
        # Segments of half a frame: 0.5, 1.5 and 2.5 go to the even neighbour.
        (5, 8, [0, 0, 1, 2, 2, 2, 3, 4]),
        (3, 8, [0, 0, 0, 1, 1, 1, 2, 2]),
        (1, 3, [0, 0, 0]),
        (8, 8, [0, 1, 2, 3, 4, 4, 5, 6]),
    ],
)
def test_known_choices(num_frames, wanted, expected):
    indices = uniform_indices(num_frames, wanted)
    assert indices.tolist() == expected
    assert indices.dtype == np.int64


@pytest.mark.skipif(not SHARED, reason="INTERNVIDEO_SHARED (reference values) is not set")
def test_upstream_choices():
    file = Path(SHARED) / "goldens" / "internvideo2_stage1" / "frame_sampling.json"
    cases = [
        record
        for record in json.loads(file.read_text())["records"]
        if record["sampler"] == "sparse" and record["mode"] == "validation"
    ]
    assert cases
    for case in cases:
        indices = uniform_indices(case["num_frames_in_video"], case["clip_len"])
        assert indices.tolist() == case["indices"]


@given(num_frames=st.integers(1, 10**6), wanted=st.integers(1, 512))
def test_choices_are_ordered_spread_and_inside(num_frames, wanted):
    indices = uniform_indices(num_frames, wanted)
    assert indices.shape == (wanted,)
    assert indices[0] >= 0
    assert indices[-1] < num_frames
    steps = np.diff(indices)
    assert np.all(steps >= 0)
    # Equal steps up to rounding at both ends.
    assert np.all(np.abs(steps - (num_frames - 1) / wanted) <= 1)
    if num_frames > wanted:
        assert np.all(steps > 0)


def test_short_videos_can_be_refused():
    assert uniform_indices(8, 8, "error").tolist() == uniform_indices(8, 8).tolist()
    with pytest.raises(ValueError, match="at least 8 frames, found 7"):
        uniform_indices(7, 8, "error")


@pytest.mark.parametrize(("num_frames", "wanted"), [(0, 8), (8, 0), (-1, 8)])
def test_nothing_is_refused(num_frames, wanted):
    with pytest.raises(ValueError, match="at least 1 frame"):
        uniform_indices(num_frames, wanted)
