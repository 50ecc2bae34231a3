"""Log-mel filterbanks of waveforms, as Kaldi computes them and BEATs reads them."""

import functools
import math

import numpy as np

from internvideo_jax.preprocessing import AudioPreprocessing

_FRAME_SECONDS = 0.025
_SHIFT_SECONDS = 0.01
_PRE_EMPHASIS = np.float32(0.97)
_LOWEST_FREQUENCY = 20.0
# The models were trained on logarithms that end here.
_FLOOR = np.finfo(np.float32).eps


def audio_input(waveform: np.ndarray, preprocessing: AudioPreprocessing) -> np.ndarray:
    """What a model reads of a waveform: its normalised filterbank, cut or padded.

    Args:
      waveform: float32 `[S]` in [-1, 1] at the preprocessing's sample rate.
      preprocessing: dimensions and constants.

    Returns:
      float32 `[num_frames, num_mels]`; zeros, the mean level, stand behind a shorter sound.
    """
    p = preprocessing
    values = filterbank(waveform, p.num_mels, p.sample_rate)[: p.num_frames]
    values = (values - np.float32(p.mean)) / np.float32(p.scale)
    return np.pad(values, [(0, p.num_frames - len(values)), (0, 0)])


def filterbank(waveform: np.ndarray, num_mels: int, sample_rate: int = 16_000) -> np.ndarray:
    """Logarithms of the energies in mel bins, in frames of 25 ms that begin every 10 ms.

    Frames that the waveform does not fill are left out.

    Args:
      waveform: float `[S]` in [-1, 1]; it counts as 16-bit integers.
      num_mels: M.
      sample_rate: samples per second.

    Returns:
      float32 `[T, M]`.

    Raises:
      ValueError: the waveform has not one dimension.
    """
    if waveform.ndim != 1:
        raise ValueError(
            f"expected a waveform [S] of one channel, found shape {waveform.shape}; average the"
            " channels"
        )
    length = int(_FRAME_SECONDS * sample_rate)
    shift = int(_SHIFT_SECONDS * sample_rate)
    if len(waveform) < length:
        return np.zeros((0, num_mels), np.float32)
    samples = waveform.astype(np.float32) * np.float32(2**15)
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::shift]
    frames = frames - frames.mean(axis=1, keepdims=True)
    # The first sample counts as its own predecessor.
    previous = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - _PRE_EMPHASIS * previous) * povey_window(length)
    # The next power of two.
    padded = 1 << (length - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(frames, padded)[:, : padded // 2]) ** 2
    # A frame at a time: BLAS wakes all its threads for one product of all frames, which takes ten
    # times as long where they have other work.
    energies = (mel_bank(num_mels, sample_rate, padded) @ spectrum[:, :, None])[:, :, 0]
    return np.log(np.maximum(energies, _FLOOR)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def povey_window(length: int) -> np.ndarray:
    """Kaldi's window: a symmetric Hann window to the power of 0.85, float32 `[length]`."""
    return (np.hanning(length) ** 0.85).astype(np.float32)


@functools.lru_cache(maxsize=8)
def mel_bank(num_mels: int, sample_rate: int, fft_size: int) -> np.ndarray:
    """Weights of spectral bins in mel bins: triangles of equal width in mels, 20 Hz to Nyquist.

    Returns:
      float32 `[num_mels, fft_size / 2]`, without the bin at the Nyquist frequency.
    """
    lowest, highest = (1127.0 * math.log1p(f / 700) for f in (_LOWEST_FREQUENCY, sample_rate / 2))
    # In float32 from here on, like the reference: among 128 narrow bins the rounding shows.
    width = np.float32((highest - lowest) / (num_mels + 1))
    edges = np.float32(lowest) + width * np.arange(num_mels + 2, dtype=np.float32)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    frequencies = np.arange(fft_size // 2, dtype=np.float32) * np.float32(sample_rate / fft_size)
    # NumPy's float32 logarithm is off by several units in the last place.
    logarithms = np.log(np.float64(1 + frequencies / np.float32(700))).astype(np.float32)
    mels = np.float32(1127) * logarithms
    rising, falling = (mels - left) / (centre - left), (right - mels) / (right - centre)
    return np.maximum(np.minimum(rising, falling), 0)
