"""Clips as paths and arrays."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.data.sources.given import GivenSource, check_frames, split_clips

FRAMES = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)


def test_paths_and_frames_come_in_their_order(tmp_path):
    source = GivenSource([tmp_path / "a.mp4", FRAMES, "b.mp4"])
    assert [source[i].record.path for i in range(3)] == [str(tmp_path / "a.mp4"), "clip 1", "b.mp4"]
    assert source[0].frames is None
    with source[1].open() as clip:
        np.testing.assert_array_equal(clip.read([2, 0]), FRAMES[[2, 0]])


@pytest.mark.parametrize("clips", ["a.mp4", Path("a.mp4"), FRAMES, jnp.asarray(FRAMES)])
def test_one_clip_alone(clips):
    found, is_one = split_clips(clips)
    assert is_one
    assert len(found) == 1


@pytest.mark.parametrize(
    "clips", [["a.mp4", FRAMES], (FRAMES, FRAMES), np.stack([FRAMES] * 2), iter([FRAMES] * 2)]
)
def test_several_clips(clips):
    found, is_one = split_clips(clips)
    assert (len(found), is_one) == (2, False)


@pytest.mark.parametrize("clips", [5, None, {"a.mp4": 1}, b"a.mp4", bytearray(b"a.mp4")])
def test_what_is_no_clip(clips):
    with pytest.raises(ValueError, match=rf"expected paths .* found {type(clips).__name__}"):
        split_clips(clips)


@pytest.mark.parametrize("clip", [5, None, b"a.mp4"])
def test_what_is_no_clip_in_a_list(clip):
    with pytest.raises(
        ValueError, match=rf"clip 0: .* found {type(clip).__name__}; .* a path as str"
    ):
        GivenSource([clip])


def test_arrays_of_other_libraries_serve():
    assert check_frames(jnp.asarray(FRAMES), "x").dtype == np.uint8
    np.testing.assert_array_equal(check_frames(jnp.asarray(FRAMES), "x"), FRAMES)


# What was passed, and the expression that the message tells to pass instead.
WRONG = {
    "channels first": (np.moveaxis(FRAMES, -1, 1), "np.moveaxis(frames, 1, -1)"),
    "channels before frames": (np.moveaxis(FRAMES, -1, 0), "np.moveaxis(frames, 0, -1)"),
    "0 to 1": (FRAMES / np.float32(255), "np.round(255 * frames).astype(np.uint8)"),
    "-1 to 1": (
        FRAMES / np.float32(127.5) - 1,
        "np.round(127.5 * (frames + 1)).astype(np.uint8)",
    ),
    "floats to 255": (FRAMES.astype(np.float64), "np.round(frames).astype(np.uint8)"),
    "wide integers": (FRAMES.astype(np.int32), "frames.astype(np.uint8)"),
    "16 bits": (FRAMES.astype(np.uint16) * 257, "(frames // 257).astype(np.uint8)"),
    "transparency": (
        np.concatenate([FRAMES, FRAMES[..., :1]], axis=-1),
        "frames[..., :3]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_remedy_for_another_layout_or_range_is_right(name):
    frames, remedy = WRONG[name]
    with pytest.raises(ValueError, match="clip 3: expected uint8 RGB") as error:
        check_frames(frames, "clip 3")
    assert f"pass {remedy}" in str(error.value)
    mended = check_frames(eval(remedy, {"np": np, "frames": frames}), "clip 3")
    np.testing.assert_array_equal(mended, FRAMES)


@pytest.mark.parametrize(
    ("frames", "remedy", "shape"),
    [
        (FRAMES[0], "frames[None]", (1, 6, 5, 3)),
        (np.moveaxis(FRAMES[0], -1, 0), "np.moveaxis(frames, 0, -1)[None]", (1, 6, 5, 3)),
        (FRAMES[..., 0], "np.repeat(frames[..., None], 3, axis=-1)", FRAMES.shape),
        (FRAMES[..., :1], "np.repeat(frames, 3, axis=-1)", FRAMES.shape),
        (FRAMES > 9, "255 * frames.astype(np.uint8)", FRAMES.shape),
    ],
)
def test_single_and_grey_pictures(frames, remedy, shape):
    with pytest.raises(ValueError, match="expected uint8 RGB") as error:
        check_frames(frames, "clip 0")
    assert f"pass {remedy}" in str(error.value)
    assert check_frames(eval(remedy, {"np": np, "frames": frames}), "clip 0").shape == shape


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.random.default_rng(0).normal(size=FRAMES.shape), "normalised already"),
        (np.full(FRAMES.shape, np.nan), "NaN or infinities"),
        (np.zeros((0, 6, 5, 3), np.uint8), "empty"),
        (np.zeros(9, np.uint8), r"shape \(9,\)"),
        (np.full(FRAMES.shape, "x"), "pass an array, or a path"),
        (np.full(FRAMES.shape, None), "pass an array, or a path"),
    ],
)
def test_what_cannot_be_frames(frames, message):
    with pytest.raises(ValueError, match=message):
        check_frames(frames, "clip 0")
