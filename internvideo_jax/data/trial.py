"""Whether the clips of a config can be read, told by reading some of them."""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.examples import MAX_TRIES, Clips, EvalExamples, broken_clips


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


def check_readable(config: DataConfig, fields: Sequence[str]) -> None:
    """Looks for a clip that can be read, so that a wrong path shows before it is needed.

    Args:
      config: which clips.
      fields: names of what is read of them; see `data.fields`.

    Raises:
      ValueError: the config's clips cannot be used.
      BrokenClips: none of the first few can be read.
    """
    clips = Clips(config)
    examples = EvalExamples(clips, config, fields)
    reasons = {}
    for index in range(min(len(clips), MAX_TRIES)):
        error = _error(examples, index)
        if not error:
            return
        reasons[clips.record(index).id] = error
    raise broken_clips(reasons)


def try_clips(
    config: DataConfig, fields: Sequence[str], *, max_clips: int = 200, seconds: float = 20.0
) -> Trial:
    """Reads one view of some clips, spread evenly over all of them.

    Args:
      config: which clips.
      fields: names of what is read of them; see `data.fields`.
      max_clips: how many are read at most.
      seconds: after which no further clip is read.

    Raises:
      ValueError: the config's clips cannot be used.
      BrokenClips: none of those that were read can be.
    """
    clips = Clips(config)
    examples = EvalExamples(clips, dataclasses.replace(config, segments=1, crops=1), fields)
    count = min(len(clips), max_clips)
    chosen = np.arange(count) * len(clips) // count
    end = time.monotonic() + seconds
    unreadable: dict[str, str] = {}
    tried = 0
    # In a random order, those read in time are spread evenly, too.
    for index in np.random.default_rng(0).permutation(chosen).tolist():
        if tried and time.monotonic() > end:
            break
        tried += 1
        if error := _error(examples, index):
            unreadable[clips.record(index).path] = error
    if len(unreadable) == tried:
        raise broken_clips(dict(list(unreadable.items())[:MAX_TRIES]))
    return Trial(tried, len(clips), unreadable)


def _error(examples: EvalExamples, index: int) -> str:
    """Why a clip cannot be read; "" if it can."""
    return str(examples(index)["error"][0])
