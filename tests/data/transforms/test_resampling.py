import itertools

import numpy as np
import pytest

from internvideo_jax.data.transforms.resampling import resampled

NEW_RATE = 16_000


def resample(pieces, rate, new_rate=NEW_RATE):
    return np.concatenate([np.zeros(0, np.float32), *resampled(pieces, rate, new_rate)])


def noise(length):
    return np.random.default_rng(0).normal(size=length).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 44_101, 48_000, 96_000])
def test_a_tone_keeps_its_pitch_and_phase(rate):
    def tone(rate):
        return np.sin(2 * np.pi * 1_000 * np.arange(rate // 4) / rate).astype(np.float32)

    found = resample([tone(rate)], rate)
    assert found.dtype == np.float32
    middle = slice(200, 3_800)
    # The filter's ripple; a hundredth of a sample of lag would be an error of 0.004.
    np.testing.assert_allclose(found[middle], tone(NEW_RATE)[middle], atol=2e-3)


def test_tones_that_the_new_rate_cannot_hold_are_silent():
    tone = np.sin(2 * np.pi * 12_000 * np.arange(44_100) / 44_100).astype(np.float32)
    assert np.abs(resample([tone], 44_100)[200:-200]).max() < 1e-2


@pytest.mark.parametrize("rate", [8_000, 44_100, 16_001])
@pytest.mark.parametrize("size", [1, 100, 441, 10_000])
def test_pieces_of_any_length_give_the_same(rate, size):
    waveform = noise(3_000)
    pieces = [waveform[i : i + size] for i in range(0, len(waveform), size)]
    pieces.insert(1, waveform[:0])
    np.testing.assert_allclose(
        resample(pieces, rate), resample([waveform], rate), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("rate", [1, 8_000, 11_025, 44_100, 44_101, 768_000])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 441, 1_000])
def test_lengths_are_rounded_up(rate, length):
    # 8 samples a second of the slowest: thousands of samples from one.
    new_rate = 8 if rate == 1 else NEW_RATE
    assert len(resample([noise(length)], rate, new_rate)) == -(-length * new_rate // rate)


def test_a_single_sample_becomes_the_filter():
    (found,) = resample([np.ones(1, np.float32)], 32_000)
    assert found == pytest.approx(0.99 / 2)


def test_nothing_gives_nothing():
    assert list(resampled([], 44_100, NEW_RATE)) == []


def test_equal_rates_leave_the_pieces_alone():
    pieces = [noise(3), noise(5)]
    found = list(resampled(pieces, NEW_RATE, NEW_RATE))
    assert all(a is b for a, b in zip(found, pieces, strict=True))


def test_a_value_that_is_no_number_costs_its_neighbours_only():
    waveform, broken = noise(44_100), noise(44_100)
    broken[20_000] = np.nan
    whole, found = resample([waveform], 44_100), resample([broken], 44_100)
    (lost,) = np.nonzero(np.isnan(found))
    assert 0 < len(lost) < 20
    kept = ~np.isnan(found)
    np.testing.assert_array_equal(found[kept], whole[kept])


def test_samples_come_before_the_waveform_has_ended():
    endless = itertools.repeat(noise(44_100))
    assert sum(len(x) for x in itertools.islice(resampled(endless, 44_100, NEW_RATE), 5)) > 70_000
