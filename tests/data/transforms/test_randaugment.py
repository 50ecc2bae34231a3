"""RandAugment: the notation, the draws and the operations; upstream's pixels are in the goldens."""

import numpy as np
import pytest

from internvideo_jax.data.transforms.randaugment import (
    INCREASING,
    KINDS,
    NOT_INCREASING,
    Operation,
    RandAugment,
    apply_operations,
    draw_operations,
    operation_at,
    parse_policy,
)


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand-m7-n4-mstd0.5-inc1", RandAugment(7, 4, 0.5, True)),
        ("rand-m5-n2-mstd0.25-inc1", RandAugment(5, 2, 0.25, True)),
        ("rand-m9", RandAugment(9, 2, 0, False)),
        ("rand", RandAugment(10, 2, 0, False)),
    ],
)
def test_policies(text, expected):
    assert parse_policy(text) == expected


@pytest.mark.parametrize("text", ["", "augmix-m3", "rand-m", "rand-m7-x3", "rand-n2.5", "rand-m-7"])
def test_unreadable_policies(text):
    with pytest.raises(ValueError, match=r"expected a RandAugment policy such as .*found"):
        parse_policy(text)


def test_inc0_is_refused_because_upstream_takes_it_for_inc1():
    with pytest.raises(ValueError, match=r"inc1 or no inc .*'rand-m7-inc0'"):
        parse_policy("rand-m7-inc0")


def test_draws_follow_the_policy():
    rng, policy = np.random.default_rng(0), RandAugment(7, 4, 0.5, True)
    clips = [draw_operations(rng, policy) for _ in range(4000)]
    drawn = [operation for clip in clips for operation in clip]
    # Each of 4 is applied with probability one half: 2 in the mean, standard error 1 / sqrt(4000).
    assert abs(len(drawn) / len(clips) - 2) < 5 / np.sqrt(len(clips))
    assert max(map(len, clips)) == 4
    counts = [sum(operation.name == name for operation in drawn) for name in INCREASING]
    expected = len(drawn) / len(INCREASING)
    assert np.all(np.abs(np.array(counts) - expected) < 5 * np.sqrt(expected))
    assert sum(counts) == len(drawn)
    angles = np.array([x.argument for x in drawn if x.name == "Rotate"]) / 30 * 10
    error = 5 / np.sqrt(len(angles))
    assert abs(np.abs(angles).mean() - 7) < 0.5 * error
    assert abs(np.abs(angles).std() - 0.5) < 0.5 * error
    assert abs(np.sign(angles).mean()) < error
    assert draw_operations(np.random.default_rng(5), policy) == draw_operations(
        np.random.default_rng(5), policy
    )


def test_levels_stay_between_0_and_10():
    rng = np.random.default_rng(0)
    for magnitude, extreme in ((100.0, 0.3), (-100.0, 0.0)):
        policy = RandAugment(magnitude, 200, 1.0, False)
        drawn = [x.argument for x in draw_operations(rng, policy) if x.name == "ShearX"]
        assert drawn
        np.testing.assert_allclose(np.abs(drawn), extreme)


def test_sets_differ_in_what_grows_with_the_level():
    assert len(INCREASING) == len(NOT_INCREASING) == 15
    assert set(INCREASING) | set(NOT_INCREASING) == set(KINDS)
    names = [x.name for x in draw_operations(np.random.default_rng(0), RandAugment(5, 2000))]
    assert set(names) == set(NOT_INCREASING)


@pytest.mark.parametrize("name", INCREASING)
def test_increasing_operations_change_more_at_higher_levels(name):
    # Smooth but for some grain, so that a small motion changes little and sharpening something; a
    # gap at both ends of the brightness.
    rows, columns = np.mgrid[:48, :64]
    image = np.stack([60 + rows, 60 + columns, 90 + (rows + columns) // 2], -1)
    image = (image + picture(48, 64) // 32).astype(np.uint8)

    def change(level: float) -> float:
        (result,) = apply_operations(image[None], [operation_at(name, level)])
        assert result.shape == image.shape
        assert result.dtype == np.uint8
        return float(np.abs(result.astype(float) - image).mean())

    assert change(9) >= change(4)
    assert change(9) > 0


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("Invert", 0, lambda x: 255 - x),
        ("Solarize", 100, lambda x: np.where(x < 100, x, 255 - x)),
        ("SolarizeAdd", 50, lambda x: np.where(x < 128, np.minimum(x + 50, 255), x)),
        ("Posterize", 3, lambda x: x // 32 * 32),
        ("Posterize", 0, lambda x: x * 0),
        ("Brightness", 0.5, lambda x: x // 2),
        ("TranslateXRel", 0.25, lambda x: np.pad(x[:, 8:], ((0, 0), (0, 8), (0, 0)), **GREY)),
        ("TranslateYRel", -0.25, lambda x: np.pad(x[:-6], ((6, 0), (0, 0), (0, 0)), **GREY)),
        ("Rotate", 0, lambda x: x),
    ],
)
def test_known_pixels(name, argument, expected):
    image = picture()
    (result,) = apply_operations(image[None], [Operation(name, argument)])
    assert np.array_equal(result, expected(image.astype(int)))


GREY = {"constant_values": 128}


def test_all_frames_get_the_same_operations_in_order():
    clip = np.stack([picture(), picture()[::-1], picture()])
    operations = [operation_at("Solarize", 3), operation_at("Rotate", 7, -1)]
    result = apply_operations(clip, operations)
    assert np.array_equal(result[0], result[2])
    expected = apply_operations(apply_operations(clip, operations[:1]), operations[1:])
    assert np.array_equal(result, expected)
    assert not np.array_equal(result, apply_operations(clip, operations[::-1]))


def test_no_operation_leaves_the_clip():
    clip = picture()[None]
    assert apply_operations(clip, []) is clip


def test_unknown_operations_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="found 'Rotat'; did you mean 'Rotate'"):
        apply_operations(picture()[None], [Operation("Rotat", 3)])
