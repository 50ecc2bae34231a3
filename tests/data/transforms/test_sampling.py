"""Which frames are chosen; the exact values of upstream are in the goldens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_jax.data.transforms.sampling import (
    dense_indices,
    dense_window_indices,
    interval_bounds,
    interval_indices,
    pretraining_indices,
    sample_indices,
    sparse_bounds,
    tsn_frame_indices,
    tsn_indices,
    uniform_indices,
)

RULES = ("sparse", "dense", "tsn", "tsn_frames", "intervals")


def assert_ordered_and_inside(indices, num_frames, wanted):
    assert (indices.dtype, indices.shape) == (np.int64, (wanted,))
    assert 0 <= indices[0] <= indices[-1] < num_frames
    assert np.all(np.diff(indices) >= 0)


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


@given(num_frames=st.integers(1, 10**6), wanted=st.integers(1, 512))
def test_choices_are_ordered_spread_and_inside(num_frames, wanted):
    indices = uniform_indices(num_frames, wanted)
    assert_ordered_and_inside(indices, num_frames, wanted)
    steps = np.diff(indices)
    # Equal steps up to rounding at both ends.
    assert np.all(np.abs(steps - (num_frames - 1) / wanted) <= 1)
    if num_frames > wanted:
        assert np.all(steps > 0)


@pytest.mark.parametrize("sampling", [*RULES, "pretraining"])
@given(
    num_frames=st.integers(1, 3000),
    wanted=st.integers(1, 64),
    rate=st.integers(1, 16),
    seed=st.integers(0, 9),
)
def test_draws_are_ordered_and_inside(sampling, num_frames, wanted, rate, seed):
    def draw():
        rng = np.random.default_rng(seed)
        return sample_indices(sampling, num_frames, wanted, rate=rate, rng=rng)

    indices = draw()
    assert_ordered_and_inside(indices, num_frames, wanted)
    assert draw().tolist() == indices.tolist()


@pytest.mark.parametrize("sampling", RULES)
@given(
    num_frames=st.integers(1, 3000),
    wanted=st.integers(1, 64),
    rate=st.integers(1, 16),
    num_views=st.integers(1, 6),
)
def test_views_are_ordered_and_inside(sampling, num_frames, wanted, rate, num_views):
    choices = [
        sample_indices(sampling, num_frames, wanted, rate=rate, view=view)
        for view in [None, *((c, num_views) for c in range(num_views))]
    ]
    for indices in choices:
        assert_ordered_and_inside(indices, num_frames, wanted)
    if num_frames > 20 * wanted * max(num_views, rate):
        assert len({tuple(indices) for indices in choices[1:]}) == num_views


@pytest.mark.parametrize(
    ("sampling", "num_frames", "view", "expected"),
    [
        ("sparse", 37, (0, 4), [0, 4, 9, 14, 18, 22, 27, 32]),
        ("sparse", 37, (3, 4), [3, 7, 12, 17, 21, 25, 30, 35]),
        ("dense", 100, (0, 3), [0, 4, 8, 12, 16, 20, 24, 28]),
        ("dense", 100, (1, 3), [34, 38, 42, 46, 50, 54, 58, 62]),
        ("dense", 100, (2, 3), [68, 72, 76, 80, 84, 88, 92, 96]),
        # A single view lies in the middle, where upstream divides by zero.
        ("dense", 100, (0, 1), [34, 38, 42, 46, 50, 54, 58, 62]),
        ("dense", 10, (0, 2), [0, 4, 8, 8, 8, 8, 8, 8]),
        ("tsn", 16, (1, 2), [1, 3, 5, 7, 9, 11, 13, 15]),
        ("tsn_frames", 24, (2, 3), [2, 5, 8, 11, 14, 17, 20, 23]),
    ],
)
def test_known_views(sampling, num_frames, view, expected):
    assert sample_indices(sampling, num_frames, 8, rate=4, view=view).tolist() == expected


def test_known_validation_choices():
    # The middle window of 32 frames, 34 to 66.
    assert dense_indices(100, 8, 4).tolist() == [34, 38, 43, 47, 52, 56, 61, 65]
    assert dense_indices(20, 8, 4).tolist() == [0, 5, 10, 15, 19, 19, 19, 19]
    assert tsn_indices(20, 8).tolist() == [1, 3, 6, 8, 11, 13, 16, 18]
    assert tsn_frame_indices(20, 8).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert tsn_frame_indices(5, 8).tolist() == [0, 0, 0, 0, 1, 2, 3, 4]


def test_the_window_of_upstream_may_begin_before_the_video():
    assert dense_window_indices(40, 8, 4, 4)[0] == -28
    assert dense_indices(40, 8, 4)[0] == 4


def test_sparse_draws_reach_both_bounds():
    low, high = sparse_bounds(17, 4)
    assert (low.tolist(), high.tolist()) == ([0, 4, 8, 12], [4, 8, 12, 16])
    rng = np.random.default_rng(0)
    draws = np.stack([sample_indices("sparse", 17, 4, rng=rng) for _ in range(300)])
    assert draws.min(axis=0).tolist() == low.tolist()
    assert draws.max(axis=0).tolist() == high.tolist()


@pytest.mark.parametrize("draw", [tsn_indices, tsn_frame_indices, pretraining_indices])
def test_segment_draws_reach_every_frame(draw):
    rng = np.random.default_rng(0)
    draws = np.stack([draw(13, 4, rng) for _ in range(300)])
    # Segments of 13 // 4 frames; the last frame is left over.
    assert [sorted(set(column)) for column in draws.T.tolist()] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9, 10, 11],
    ]


def test_short_videos_in_training():
    rng = np.random.default_rng(0)
    assert tsn_indices(5, 8, rng).tolist() == [0] * 8
    assert pretraining_indices(5, 8, rng).tolist() == [0] * 8
    assert tsn_frame_indices(5, 8, rng).tolist() == [0, 0, 0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("sparse", 10, 4), {"view": (4, 4)}, r"0 <= c < S, found \(4, 4\)"),
        (("sparse", 10, 4), {"view": (0, 1), "rng": 0}, "found both"),
        (("evenly", 10, 4), {}, "sampling of sparse, .*, found 'evenly'"),
        (("pretraining", 10, 4), {}, "pass rng"),
        (("dense", 10, 4), {"rate": 0}, "rate of at least 1"),
        *(((rule, 0, 4), {}, "at least 1 frame, found 0") for rule in (*RULES, "uniform")),
    ],
)
def test_impossible_choices(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        sample_indices(*arguments, **options)


def test_intervals_take_their_middles_and_fill_up_with_the_last_frame():
    assert interval_indices(120, 4).tolist() == [14, 44, 74, 104]
    assert interval_indices(3, 5).tolist() == [0, 1, 2, 2, 2]
    # Views of a test take turns.
    views = [interval_indices(120, 4, view=(c, 2)).tolist() for c in range(2)]
    assert sorted(views[0] + views[1]) == interval_indices(120, 8).tolist()
    assert views[0] == interval_indices(120, 8)[::2].tolist()


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 9))
def test_draws_from_intervals_lie_in_them_or_are_any_frames_where_some_have_one(n, wanted, seed):
    drawn = interval_indices(n, wanted, np.random.default_rng(seed))
    assert_ordered_and_inside(drawn, n, wanted)
    low, high = interval_bounds(n, wanted)
    if (low < high).all():
        assert np.all((low <= drawn) & (drawn < high))
    else:
        assert len(set(drawn.tolist())) == min(n, wanted)
