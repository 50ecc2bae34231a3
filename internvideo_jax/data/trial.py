"""Whether the clips of a config can be read, told by reading some of them."""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.examples import MAX_TRIES, Clips, EvalExamples, broken_clips
from internvideo_jax.data.pipeline import Fields, fields_of


class Trial(NamedTuple):
    """What reading some clips has shown.

    Attributes:
      tried: how many were read.
      total: how many there are.
      unreadable: reasons of those that cannot be read, by their paths.
    """

    tried: int
    total: int
    unreadable: dict[str, str]


def check_readable(config: DataConfig, fields: Fields) -> None:
    """Looks for a clip that can be read, so that a wrong path shows before it is needed.

    Args:
      config: which clips; of each kind of media one must be readable.
      fields: names of what is read of them, perhaps by the name of their media; see `data.fields`.

    Raises:
      ValueError: the config's clips cannot be used.
      BrokenClips: none of the first few of a kind can be read.
    """
    clips = Clips(config)
    for media, sets in clips.kinds().items():
        examples = _examples(clips, config, sets[0], fields, media)
        first, end = clips.bounds(sets[0])
        reasons = {}
        for index in range(first, min(end, first + MAX_TRIES)):
            error = _error(examples, index)
            if not error:
                break
            reasons[clips.record(index).id] = error
        else:
            raise broken_clips(reasons)


def try_clips(
    config: DataConfig, fields: Fields, *, max_clips: int = 200, seconds: float = 20.0
) -> Trial:
    """Reads one view of some clips, spread evenly over all of them.

    Args:
      config: which clips.
      fields: names of what is read of them, perhaps by the name of their media; see `data.fields`.
      max_clips: how many are read at most.
      seconds: after which no further clip is read.

    Raises:
      ValueError: the config's clips cannot be used.
      BrokenClips: none of those of a kind of media that were read can be.
    """
    config = dataclasses.replace(config, segments=1, crops=1)
    clips = Clips(config)
    kinds = clips.kinds()
    unreadable: dict[str, str] = {}
    tried = 0
    for media, sets in kinds.items():
        examples = _examples(clips, config, sets[0], fields, media)
        end = time.monotonic() + seconds / len(kinds)
        failed: dict[str, str] = {}
        read = 0
        chosen = _spread(clips, sets, max_clips // len(kinds))
        # In a random order, those read in time are spread evenly, too.
        for index in np.random.default_rng(0).permutation(chosen).tolist():
            if read and time.monotonic() > end:
                break
            read += 1
            if error := _error(examples, index):
                failed[clips.record(index).path] = error
        if len(failed) == read:
            raise broken_clips(dict(list(failed.items())[:MAX_TRIES]))
        unreadable |= failed
        tried += read
    return Trial(tried, len(clips), unreadable)


def _examples(
    clips: Clips, config: DataConfig, number: int, fields: Fields, media: str
) -> EvalExamples:
    """What is read of the clips of a set, and of those that share batches with it."""
    own = config.of_member(clips.members[number])
    return EvalExamples(clips, own, fields_of(fields, media))


def _spread(clips: Clips, sets: Sequence[int], count: int) -> np.ndarray:
    """Indices of at most `count` clips, at least one, evenly over some sets."""
    firsts, ends = np.array([clips.bounds(number) for number in sets]).T
    lengths = ends - firsts
    total = int(lengths.sum())
    count = min(total, max(count, 1))
    chosen = np.arange(count) * total // count
    place = np.searchsorted(np.cumsum(lengths), chosen, side="right")
    return chosen - (np.cumsum(lengths) - lengths)[place] + firsts[place]


def _error(examples: EvalExamples, index: int) -> str:
    """Why a clip cannot be read; "" if it can."""
    return str(examples(index)["error"][0])
