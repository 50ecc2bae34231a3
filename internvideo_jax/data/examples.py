"""From the number of an example to its columns: which clip it is, and what fields make of it."""

import bisect
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.config import DataConfig, MixtureMember
from internvideo_jax.data.fields import make_fields
from internvideo_jax.data.fields.field import Columns, LazyClip, UnfitClip
from internvideo_jax.data.fields.label import label_array
from internvideo_jax.data.sources.clips import RecordSource, annotation_root, open_source
from internvideo_jax.data.sources.frame_cache import CachedSource
from internvideo_jax.data.sources.source import ClipSource, SourceClip, reason
from internvideo_jax.data.validation import divide

# A broken clip's neighbours are tried up to this many times; so many in a row are a broken disk.
MAX_TRIES = 16

# Columns, and `problems` of training examples.
Example = dict[str, Any]


class BrokenClips(ValueError):
    """No clip can be read any more."""


def broken_clips(reasons: dict[str, str]) -> BrokenClips:
    """The error of clips of which none can be read, with the reasons by their ids."""
    listed = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
    return BrokenClips(
        f"expected clips that can be read, found {len(reasons)} in a row that cannot; check the"
        f" paths and their root, the disk, and all clips with `internvideo-jax scan`:{listed}"
    )


class Clips:
    """All clips of a config, those of its mixture one set after the other.

    Args:
      config: which clips.
      use_cache: whether clips come from `config.cache_dir`, if that is set, which is made if need
        be; not for those who only want to know which clips there are.
      with_sound: whether the cache has their sound, too.
      source: clips to take instead of the config's own.

    Raises:
      ValueError: a set cannot be opened, or has labels that do not fit the config.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        use_cache: bool = False,
        with_sound: bool = False,
        source: ClipSource | None = None,
    ):
        self.members = config.members if source is None else ()
        self._sources: list[ClipSource] = (
            [_open(member, config) for member in self.members] if source is None else [source]
        )
        for number, source in enumerate(self._sources):
            if not len(source):
                name = self.members[number].name if self.members else "source"
                raise ValueError(f"{name}: expected clips, found none")
            many = source.first_of_many_labels() if isinstance(source, RecordSource) else None
            if many is not None and config.num_classes is not None:
                label_array(source[many].record, config)
            if use_cache and config.cache_dir is not None:
                own = config.of_member(self.members[number]) if self.members else config
                # Whatever comes next begins by scaling frames, which then are as they must be.
                size = own.image_size if own.augmentation == "none" else None
                self._sources[number] = CachedSource(
                    source,
                    config.cache_dir,
                    size,
                    own.resize,
                    config.audio.sample_rate if with_sound else None,
                )
        self._ends = list(itertools.accumulate(map(len, self._sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> SourceClip:
        number = self._set(index)
        return self._sources[number][index - self.bounds(number)[0]]

    def bounds(self, number: int) -> tuple[int, int]:
        """First index of a set, and the one after its last."""
        end = self._ends[number]
        return end - len(self._sources[number]), end

    def paths(self) -> Iterator[str]:
        """Those of the clips that are files or folders of images; others have none."""
        for source in self._sources:
            if isinstance(source, RecordSource):
                yield from (record.path for record in source.records)

    def kinds(self) -> dict[str, list[int]]:
        """Numbers of the sets of clips that share batches, by the name of their media."""
        kinds: dict[str, list[int]] = {}
        for number, member in enumerate(self.members):
            kinds.setdefault(member.media, []).append(number)
        return kinds

    def fingerprint(self) -> str:
        """Changes with the clips of all sets, their order and the weights of a mixture."""
        weights = tuple(member.weight for member in self.members)
        parts = (*(source.fingerprint() for source in self._sources), repr(weights))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def neighbour(self, index: int, distance: int) -> int:
        """The index so many places further on in the same set, which begins again at its end."""
        first, end = self.bounds(self._set(index))
        return first + (index - first + distance) % (end - first)

    def record(self, index: int) -> ClipRecord:
        """What is known of a clip: its number where a damaged shard does not even say that."""
        try:
            return self[index].record
        except (ValueError, OSError):
            return ClipRecord(id=f"clip {index}", path=f"clip {index}")

    def _set(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)


def _open(member: MixtureMember, config: DataConfig) -> ClipSource:
    """A set of clips, or the part of it that the config says."""
    classes = config.class_names()
    source = open_source(member, num_classes=config.num_classes, classes=classes)
    if not config.validation_share:
        return source
    assert isinstance(source, RecordSource)
    train, validation = divide(source.records, config.validation_share, annotation_root(member))
    return RecordSource(train if config.part == "train" else validation)


class ExampleOrder:
    """The clip of every training example, without end.

    Every set is shuffled anew for each pass over it; a mixture takes from its sets by weight.

    Args:
      clips: all clips.
      sets: numbers of the sets to take from.
      seed: of the shuffles.
    """

    def __init__(self, clips: Clips, sets: Sequence[int], seed: int):
        parts = []
        for number in sets:
            own_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            part = grain.MapDataset.range(*clips.bounds(number))
            parts.append(part.shuffle(seed=own_seed).repeat(None))
        weights = [clips.members[number].weight for number in sets]
        self._order = grain.MapDataset.mix(parts, weights) if len(parts) > 1 else parts[0]

    def __getitem__(self, number: int) -> int:
        """The index of the clip of an example."""
        return int(self._order[number])


class TrainExamples:
    """Training examples by number; calling it gives the rows of one.

    The draws of example n come from (seed, n) and the field alone. A clip that cannot be read is
    replaced by the next one of its set, with draws of its own.

    Args:
      clips: all clips.
      config: what becomes of them.
      fields: names of the fields of an example.
      seed: of all draws.
      sets: numbers of the sets of clips to take from.
      stream: tells apart the draws of several kinds of examples of one run.
    """

    def __init__(
        self,
        clips: Clips,
        config: DataConfig,
        fields: Sequence[str],
        seed: int,
        *,
        sets: Sequence[int],
        stream: int = 0,
    ):
        self._clips = clips
        self._rows = config.num_sample
        self._fields = make_fields(fields, config, len(clips))
        self._seed = seed
        # None for the first kind, whose draws are those of runs of a single kind.
        self._stream = (stream,) if stream else ()
        self._order = ExampleOrder(clips, sets, seed)

    def __call__(self, number: int) -> Example:
        """Columns of `num_sample` rows, and `problems`: reasons of unreadable clips by their ids.

        Raises:
          BrokenClips: `MAX_TRIES` clips in a row cannot be read.
          UnfitClip: a clip contradicts the config.
        """
        problems: dict[str, str] = {}
        chosen = self._order[number]
        for attempt in range(MAX_TRIES):
            index = self._clips.neighbour(chosen, attempt)
            columns: Columns = {}
            try:
                with LazyClip(index, self._clips[index]) as clip:
                    for field in self._fields:
                        numbers = (self._seed, number, attempt, *self._stream)
                        draws = functools.partial(field.generator, *numbers)
                        columns |= field.train(clip, draws)
            except UnfitClip:
                raise
            except (ValueError, OSError) as error:
                problems[self._clips.record(index).id] = reason(error)
                continue
            columns |= {"index": np.array([index]), "replaced": np.array([attempt > 0])}
            return {**_with_rows(columns, self._rows), "problems": problems}
        raise broken_clips(problems)


class EvalExamples:
    """All clips by number; calling it gives the views of one, segment by segment, crop by crop.

    Args:
      clips: all clips.
      config: what becomes of them.
      fields: names of the fields.
    """

    def __init__(self, clips: Clips, config: DataConfig, fields: Sequence[str]):
        self._clips = clips
        self._segments, self._crops = config.segments, config.crops
        self._fields = make_fields(fields, config, len(clips))

    def __len__(self) -> int:
        return len(self._clips)

    def __call__(self, index: int) -> Columns:
        """Rows of the views of a clip; `error` says why it lacks some of its fields."""
        columns: Columns = {}
        errors = []
        try:
            with LazyClip(index, self._clips[index]) as clip:
                for field in self._fields:
                    try:
                        columns |= field.evaluate(clip)
                    except (ValueError, OSError) as problem:
                        errors.append(reason(problem))
        except (ValueError, OSError) as problem:
            errors.append(reason(problem))
        if errors:
            columns = self._blank() | columns
        columns |= {
            "index": np.array([index]),
            "segment": np.repeat(np.arange(self._segments, dtype=np.int32), self._crops),
            "crop": np.tile(np.arange(self._crops, dtype=np.int32), self._segments),
            "valid": np.array([not errors]),
            "error": np.array(errors[:1] or [""]),
        }
        return _with_rows(columns, self._segments * self._crops)

    def padding(self, count: int) -> Columns:
        """So many rows that are no clip's."""
        columns = self._blank() | {
            "index": np.full(1, -1),
            "segment": np.zeros(1, np.int32),
            "valid": np.zeros(1, bool),
            "error": np.array([""]),
            "crop": np.zeros(1, np.int32),
        }
        return _with_rows(columns, count)

    def _blank(self) -> Columns:
        columns: Columns = {}
        for field in self._fields:
            columns |= field.blank()
        return columns


def _with_rows(columns: Columns, count: int) -> Columns:
    """Columns in which a single row stands for all `count`."""
    return {
        name: array if len(array) == count else np.repeat(array, count, axis=0)
        for name, array in columns.items()
    }


def join_rows(parts: Sequence[Columns]) -> Columns:
    """The rows of several examples below each other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
