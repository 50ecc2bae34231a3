"""Which frames of a video a model sees.

Four rules spread `wanted` frames over a video, each in three modes: a random draw for training,
one fixed choice for validation, and S different ones for a test with several views.

  sparse     Kinetics, Moments in Time, ActivityNet, HACS: one frame of each of `wanted` segments
  dense      UCF101: `wanted` frames `rate` apart
  tsn        Something-Something, HMDB51: one frame of each segment, with other rounding; image
             folders ("tsn_frames") again with their own
  intervals  stage 2: one frame of each of `wanted` intervals, in tests the one in its middle

"pretraining" is the draw of stage 1; "uniform" is "sparse" that never draws: cached features are
of the frames that come again. Source: `InternVideo2/single_modality/datasets` of upstream
(`kinetics_sparse.py`, `kinetics.py`, `ssv2.py`, `mae_multi.py`) and, of "intervals",
`InternVideo2/multi_modality/dataset/video_utils.py`.
"""

from typing import Literal, get_args

import numpy as np

Sampling = Literal["sparse", "dense", "tsn", "tsn_frames", "pretraining", "uniform", "intervals"]
View = tuple[int, int]


def sample_indices(
    sampling: Sampling,
    num_frames: int,
    wanted: int,
    *,
    rate: int = 1,
    rng: np.random.Generator | None = None,
    view: View | None = None,
) -> np.ndarray:
    """Chooses frames by the rule of a dataset.

    Args:
      sampling: the rule; see above.
      num_frames: frames in the video, at least 1.
      wanted: frames to choose, at least 1.
      rate: frames from one to the next; only "dense" looks at it.
      rng: draws a training choice.
      view: (c, S) takes view c of a test with S views. Without `rng` and `view`: validation.

    Returns:
      int64 `[wanted]`, ascending, in [0, num_frames).

    Raises:
      ValueError: no frames, an unknown rule, `rng` and `view` together, a view outside its test,
        or "pretraining" without `rng`.
    """
    if view is not None and not 0 <= view[0] < view[1]:
        raise ValueError(f"expected a view (c, S) with 0 <= c < S, found {view}")
    if rng is not None and view is not None:
        raise ValueError("expected rng (training) or view (test), found both")
    match sampling:
        case "sparse":
            return sparse_indices(num_frames, wanted, rng, view=view)
        case "uniform":
            return sparse_indices(num_frames, wanted, view=view)
        case "dense":
            return dense_indices(num_frames, wanted, rate, rng, view=view)
        case "tsn":
            return tsn_indices(num_frames, wanted, rng, view=view)
        case "tsn_frames":
            return tsn_frame_indices(num_frames, wanted, rng, view=view)
        case "intervals":
            return interval_indices(num_frames, wanted, rng, view=view)
        case "pretraining":
            if rng is None:
                raise ValueError('"pretraining" only draws: pass rng, or choose "sparse"')
            return pretraining_indices(num_frames, wanted, rng)
    raise ValueError(f"expected a sampling of {', '.join(get_args(Sampling))}, found {sampling!r}")


def uniform_indices(num_frames: int, wanted: int) -> np.ndarray:
    """Frames spread evenly over a whole video: one per segment, near the segment's middle.

    The video is cut into `wanted` segments of s = (num_frames - 1) / wanted frames; frame i is
    round(s * i) + floor(s / 2), halves rounded to even. A video shorter than `wanted` shows some
    frames more than once.

    Args:
      num_frames: frames in the video, at least 1.
      wanted: frames to choose, at least 1.

    Returns:
      int64 `[wanted]`, ascending, in [0, num_frames).

    Raises:
      ValueError: no frames, or none wanted.

    Source: the validation rule of upstream's `single_modality/datasets/kinetics_sparse.py`.
    """
    _check(num_frames, wanted)
    segment = (num_frames - 1) / wanted
    return _clipped(np.round(segment * np.arange(wanted)) + int(segment / 2), num_frames)


def sparse_bounds(num_frames: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last frame (inclusive) of each segment that "sparse" draws from, `[wanted]`."""
    _check(num_frames, wanted)
    edges = np.round((num_frames - 1) / wanted * np.arange(wanted + 1)).astype(np.int64)
    return edges[:-1], edges[1:]


def sparse_indices(
    num_frames: int,
    wanted: int,
    rng: np.random.Generator | None = None,
    *,
    view: View | None = None,
) -> np.ndarray:
    """One frame of each of `wanted` segments; see `sample_indices`."""
    _check(num_frames, wanted)
    if rng is not None:
        low, high = sparse_bounds(num_frames, wanted)
        return rng.integers(low, high, endpoint=True)
    if view is None:
        return uniform_indices(num_frames, wanted)
    segment = (num_frames - 1) / wanted
    shift = int(segment / (view[1] + 1) * (view[0] + 1))
    return _clipped(np.round(segment * np.arange(wanted)) + shift, num_frames)


def dense_indices(
    num_frames: int,
    wanted: int,
    rate: int,
    rng: np.random.Generator | None = None,
    *,
    view: View | None = None,
) -> np.ndarray:
    """`wanted` frames about `rate` apart; see `sample_indices`.

    Validation takes the middle of the video. Upstream takes the window that ends at
    (num_frames - wanted * rate) // 2, which may begin before the video does
    (`dense_window_indices`).
    """
    _check(num_frames, wanted)
    if rate < 1:
        raise ValueError(f"expected a rate of at least 1 frame, found {rate}")
    window = wanted * rate
    if view is not None:
        c, num_views = view
        spare = max(num_frames - window, 0)
        start = int(c * (spare / (num_views - 1))) if num_views > 1 else spare // 2
        return _clipped(start + rate * np.arange(wanted), _last(num_frames, start, rate) + 1)
    if rng is not None and num_frames > window:
        return dense_window_indices(num_frames, wanted, rate, int(rng.integers(window, num_frames)))
    return dense_window_indices(num_frames, wanted, rate, (num_frames + window) // 2)


def dense_window_indices(num_frames: int, wanted: int, rate: int, end: int) -> np.ndarray:
    """Frames of the window of wanted * rate frames before frame `end`.

    A video that is no longer than the window is shown from its beginning, and its last frame fills
    up. Indices are negative where a window begins before the video.
    """
    _check(num_frames, wanted)
    window = wanted * rate
    if num_frames > window:
        indices = np.linspace(end - window, end, wanted)
        return np.clip(indices, end - window, end - 1).astype(np.int64)
    spread = np.linspace(0, num_frames, num_frames // rate)
    return _clipped(np.concatenate([spread, np.full(wanted - len(spread), num_frames)]), num_frames)


def tsn_indices(
    num_frames: int,
    wanted: int,
    rng: np.random.Generator | None = None,
    *,
    view: View | None = None,
) -> np.ndarray:
    """Segment sampling of video files; see `sample_indices`.

    A training video with fewer frames than wanted shows its first one only. Test views are those of
    image folders; upstream's are the same where there are two, while with more of them it repeats
    one frame until the number fits.
    """
    _check(num_frames, wanted)
    if rng is not None:
        return pretraining_indices(num_frames, wanted, rng)
    if view is not None:
        return _shifted_view(num_frames, wanted, view)
    tick = num_frames / wanted
    return (tick / 2 + tick * np.arange(wanted)).astype(np.int64)


def tsn_frame_indices(
    num_frames: int,
    wanted: int,
    rng: np.random.Generator | None = None,
    *,
    view: View | None = None,
) -> np.ndarray:
    """Segment sampling of image folders, from 0; see `sample_indices`.

    A folder with fewer images than wanted shows the first one until the others just fit.
    """
    _check(num_frames, wanted)
    if view is not None:
        return _shifted_view(num_frames, wanted, view)
    if num_frames < wanted:
        return np.maximum(np.arange(num_frames - wanted, num_frames), 0)
    if rng is not None:
        return pretraining_indices(num_frames, wanted, rng)
    segment = num_frames // wanted
    return segment * np.arange(wanted) + segment // 2


def pretraining_indices(num_frames: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Draws one frame of each of `wanted` equal segments; a short video shows its first frame.

    Upstream reads the frame before each of these, and so the last one of the video for the first.
    """
    _check(num_frames, wanted)
    segment = num_frames // wanted
    if not segment:
        return np.zeros(wanted, np.int64)
    return segment * np.arange(wanted) + rng.integers(segment, size=wanted)


def interval_bounds(num_frames: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """First frame of each interval that "intervals" draws from, and the one after its last.

    The last frame of an interval is never drawn, except that the middle of an interval of one frame
    is that frame. A video with fewer frames than wanted has as many intervals as frames.

    Returns:
      int64 `[n]` each, with n = min(wanted, num_frames).
    """
    _check(num_frames, wanted)
    edges = np.linspace(0, num_frames, min(wanted, num_frames) + 1).astype(np.int64)
    return edges[:-1], edges[1:] - 1


def interval_indices(
    num_frames: int,
    wanted: int,
    rng: np.random.Generator | None = None,
    *,
    view: View | None = None,
) -> np.ndarray:
    """One frame of each of `wanted` intervals; see `sample_indices`.

    View c of S takes every S-th, from the c-th, of S times as many frames. The last frame fills up
    where a video has too few.
    """
    c, num_views = view or (0, 1)
    low, high = interval_bounds(num_frames, wanted * num_views)
    if rng is None:
        chosen = (low + high) // 2
    elif (low < high).all():
        chosen = rng.integers(low, high)
    else:
        chosen = np.sort(rng.choice(num_frames, len(low), replace=False))
    fill = wanted * num_views - len(chosen)
    return np.pad(chosen, (0, fill), mode="edge")[c::num_views]


def _shifted_view(num_frames: int, wanted: int, view: View) -> np.ndarray:
    """View c of S: every S-th, from the c-th, of all frames at S equal shifts of the segments."""
    c, num_views = view
    tick = num_frames / wanted
    # Grouped as in upstream: the sums are truncated, so that their rounding shows.
    shifts = np.arange(num_views) * tick / num_views
    union = np.sort((shifts[:, None] + tick * np.arange(wanted)).astype(np.int64), axis=None)
    return union[c::num_views]


def _last(num_frames: int, start: int, rate: int) -> int:
    """The last frame at a multiple of `rate` after `start`."""
    return start + (num_frames - 1 - start) // rate * rate


def _clipped(indices: np.ndarray, num_frames: int) -> np.ndarray:
    return np.minimum(indices, num_frames - 1).astype(np.int64)


def _check(num_frames: int, wanted: int) -> None:
    if wanted < 1:
        raise ValueError(f"expected at least 1 frame to sample, found {wanted}")
    if num_frames < 1:
        raise ValueError(f"expected a video with at least 1 frame, found {num_frames}")
