"""Waveforms at another sample rate, by band-limited interpolation as the models were trained with.

The windowed sinc of `torchaudio.transforms.Resample` with its defaults; FFmpeg's filter differs.
"""

import functools
import math
from collections.abc import Iterable, Iterator

import numpy as np

# The sinc has this many zero crossings on either side, under a Hann window.
_ZERO_CROSSINGS = 6
# What is kept of the band that both rates can hold.
_ROLLOFF = 0.99
# Numbers at a time, when weights are made or applied.
_CHUNK = 2**22


def resampled(pieces: Iterable[np.ndarray], rate: int, new_rate: int) -> Iterator[np.ndarray]:
    """Resamples a waveform that comes, and goes, in pieces; silence lies around it.

    Of S samples there come `ceil(S * new_rate / rate)`; the first ones are of the same time. What
    is kept in memory does not grow with S, but with the pieces and the rates.

    Args:
      pieces: float32 `[s]` each, of any lengths.
      rate: their samples per second.
      new_rate: samples per second of the result.

    Yields:
      float32 `[s]`; the pieces as they are where the rates are equal.
    """
    divisor = math.gcd(rate, new_rate)
    old, new = rate // divisor, new_rate // divisor
    if old == new:
        yield from pieces
        return
    # Blocks of `old` samples become blocks of `new` ones, all with the same weights.
    taps = _weights(old, new).shape[1]
    buffer = np.zeros(_width(old, new), np.float32)
    received = made = 0
    for piece in pieces:
        received += len(piece)
        buffer = np.concatenate([buffer, piece])
        blocks = max(len(buffer) - (taps - 1), 0) // old
        yield from _apply(buffer, blocks, old, new)
        buffer = buffer[blocks * old :]
        made += blocks * new
    rest = -(-received * new // old) - made
    blocks = -(-rest // new)
    buffer = np.pad(buffer, (0, max(blocks * old + taps - 1 - len(buffer), 0)))
    for samples in _apply(buffer, blocks, old, new):
        yield samples[:rest]
        rest -= len(samples)


def _apply(buffer: np.ndarray, blocks: int, old: int, new: int) -> Iterator[np.ndarray]:
    """The next `blocks * new` samples, of a buffer that begins `width` samples before them."""
    if not blocks:
        return
    weights = _weights(old, new)
    windows = np.lib.stride_tricks.sliding_window_view(buffer, weights.shape[1])
    # Windows of one block, by the sample that each begins with.
    begins = np.arange(new) * old // new
    chunk = max(_CHUNK // weights.size, 1)
    for first in range(0, blocks, chunk):
        origins = old * np.arange(first, min(first + chunk, blocks))
        # No product of matrices: BLAS would wake all its threads beside others' work.
        yield np.einsum("bpk,pk->bp", windows[origins[:, None] + begins], weights).ravel()


def _width(old: int, new: int) -> int:
    """How many samples count on either side."""
    return math.ceil(_ZERO_CROSSINGS * old / (_ROLLOFF * min(old, new)))


@functools.lru_cache(maxsize=4)
def _weights(old: int, new: int) -> np.ndarray:
    """Weights of the samples around each of `new` points in time, float32 `[new, 2 * width + 2]`.

    At most 16 times as many as the greater of the two numbers.
    """
    width = _width(old, new)
    taps = np.arange(-width, width + 2)
    # Times count from 0 to 1 within a block; the cutoff is in zero crossings per block.
    cutoff = _ROLLOFF * min(old, new)
    weights = np.empty((new, len(taps)), np.float32)
    chunk = max(_CHUNK // (4 * len(taps)), 1)
    for first in range(0, new, chunk):
        points = np.arange(first, min(first + chunk, new))
        samples = taps + (points * old // new)[:, None]
        # In float32, like the reference: at odd rates, of many points, the rounding shows.
        times = (points / new).astype(np.float32)[:, None]
        crossings = np.clip((samples / old - times) * cutoff, -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
        hann = np.cos(crossings * (np.pi / (2 * _ZERO_CROSSINGS))) ** 2
        weights[points] = np.sinc(crossings) * hann * (cutoff / old)
    return weights
