"""What a field is, and the clip that fields look into."""

import abc
import contextlib
import functools
import zlib
from collections.abc import Callable
from typing import ClassVar, Self

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.video import ClipReader
from internvideo_jax.data.sources.source import SourceClip

# Columns of a batch by name, with rows along the first axis.
Columns = dict[str, np.ndarray]
# Makes the random numbers of a field and an example, the same each time: most fields need none.
Draws = Callable[[], np.random.Generator]


class UnfitClip(ValueError):
    """A clip that contradicts the config, as opposed to one that cannot be read."""


class LazyClip:
    """A clip whose file is opened when a field first looks into it, and closed after the block.

    Attributes:
      index: number of the clip in its config.
      record: what is known of it.
    """

    def __init__(self, index: int, clip: SourceClip):
        self.index = index
        self.record = clip.record
        self._clip = clip
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @functools.cached_property
    def reader(self) -> ClipReader:
        """Its frames.

        Raises:
          VideoError: it cannot be read.
        """
        return self._opened.enter_context(self._clip.open())

    def sound(self, sample_rate: int) -> np.ndarray:
        """Its waveform, float32 `[S]` in [-1, 1].

        Raises:
          SoundError: it has none.
          VideoError: it cannot be read.
        """
        return self._clip.waveform(sample_rate)


class Field(abc.ABC):
    """A transform from clips to columns of a batch.

    Columns have as many rows as the example (augmented copies in training, views in evaluation), or
    one that stands for all of them.

    Attributes:
      name: of the field, and of its main column.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def __init__(self, config: DataConfig): ...

    def train(self, clip: LazyClip, draws: Draws) -> Columns:
        """Columns of a training example; all chance comes from `draws()`, and by default there is
        none.

        Raises:
          UnfitClip: training cannot go on with such a clip in the list.
          ValueError, OSError: the clip cannot be read, another one will do.
        """
        return self.evaluate(clip)

    @abc.abstractmethod
    def evaluate(self, clip: LazyClip) -> Columns:
        """Columns of all views of a clip: segment by segment, crop by crop.

        Raises:
          ValueError, OSError: the clip cannot be read.
        """

    @abc.abstractmethod
    def blank(self) -> Columns:
        """One row of `evaluate`'s columns where there is no clip."""

    def generator(self, *numbers: int) -> np.random.Generator:
        """The field's own draws for an example, so that one field changes nothing for another."""
        return np.random.default_rng((*numbers, zlib.crc32(self.name.encode())))
