"""Endless training batches of decoded clips: any step gives the same batch every time."""

import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from internvideo_jax.data.watchdog import BackgroundIterator
from internvideo_jax.launch.demonstration.clips import Clips
from internvideo_jax.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from internvideo_jax.training.stage import HostBatch

Batches = Callable[[int], Iterator[HostBatch]]

# A batch takes milliseconds.
_TIMEOUT = 600.0


def image_batches(clips: Clips, batch_size: int, seed: int) -> Batches:
    """Single frames, drawn from each clip, with looks as labels, for `ClassifyStage`."""

    def batch(step: int) -> HostBatch:
        index = _rows(len(clips), batch_size, seed, step)
        rng = np.random.default_rng((seed, step))
        frames = rng.integers(clips.video.shape[1], size=batch_size)
        video = normalized(clips.video[index, frames][:, None])
        return {"video": video, "label": clips.looks[index], "index": index}

    return _in_background(batch)


def motion_batches(clips: Clips, batch_size: int, seed: int) -> Batches:
    """Clips with motions as labels, for `ClassifyStage`."""

    def batch(step: int) -> HostBatch:
        index = _rows(len(clips), batch_size, seed, step)
        video = normalized(clips.video[index])
        return {"video": video, "label": clips.motions[index], "index": index}

    return _in_background(batch)


def cached_batches(
    clips: Clips, features: Mapping[str, np.ndarray], batch_size: int, seed: int
) -> Batches:
    """Clips with their teachers' features, for `PretrainStage` with cached teachers."""

    def batch(step: int) -> HostBatch:
        index = _rows(len(clips), batch_size, seed, step)
        taken = {name: array[index] for name, array in features.items()}
        return {"video": clips.video[index], **taken, "index": index}

    return _in_background(batch)


def normalized(video: np.ndarray) -> np.ndarray:
    """Pixels 0..255 as models take them, float32; as `preprocessing.normalize`."""
    mean, std = (np.array(x, np.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (video.astype(np.float32) / 255 - mean) / std


def _rows(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Clips of a step's batch, int64: every clip comes once before any comes again."""
    numbers = step * batch_size + np.arange(batch_size)
    return np.array([_order(count, seed, int(n // count))[n % count] for n in numbers])


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _in_background(batch: Callable[[int], HostBatch]) -> Batches:
    def batches(start: int) -> Iterator[HostBatch]:
        def make(delivered: int) -> Iterator[HostBatch]:
            step = start + delivered
            while True:
                yield batch(step)
                step += 1

        return BackgroundIterator(make, timeout=_TIMEOUT)

    return batches
