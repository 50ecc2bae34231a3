import numpy as np
import pytest

from internvideo_jax.data.transforms.filterbank import audio_input, filterbank, mel_bank
from internvideo_jax.preprocessing import AudioPreprocessing


def tone(hertz, seconds=0.2, rate=16_000):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2)])
def test_only_full_frames_count(samples, frames):
    assert filterbank(np.zeros(samples, np.float32), 64).shape == (frames, 64)


@pytest.mark.parametrize("hertz", [300, 1000, 4000])
def test_a_tone_sounds_in_its_mel_bin(hertz):
    loudest = filterbank(tone(hertz), 64).mean(0).argmax()
    assert mel_bank(64, 16_000, 512)[loudest, round(hertz / 31.25)] > 0.4


def test_silence_is_the_floor():
    np.testing.assert_allclose(
        filterbank(np.zeros(800, np.float32), 8), np.log(2.0**-23), rtol=1e-6
    )


def test_inputs_are_normalised_cut_and_padded_with_the_mean():
    sound = tone(500)
    raw = filterbank(sound, 16)
    for frames in (5, 30):
        p = AudioPreprocessing(num_mels=16, num_frames=frames, mean=3.0, scale=2.0)
        out = audio_input(sound, p)
        assert out.shape == (frames, 16)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out[: len(raw)], ((raw - 3) / 2)[:frames], rtol=1e-5, atol=1e-6)
        assert not out[len(raw) :].any()


def test_other_rates_have_their_own_frames():
    assert filterbank(tone(500, rate=8000), 16, 8000).shape == (18, 16)


def test_several_channels_are_refused():
    with pytest.raises(ValueError, match="one channel"):
        filterbank(np.zeros((2, 800)), 8)
