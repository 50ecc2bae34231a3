"""From the number of an example to its arrays: which clip it is, and what becomes of its frames."""

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.clips import ClipReader
from internvideo_jax.data.sources.clips import (
    ClipSource,
    RecordSource,
    SourceClip,
    open_source,
    reason,
)
from internvideo_jax.data.sources.frame_cache import CachedSource
from internvideo_jax.data.transforms.augmentation import (
    FinetuneAugmentation,
    finetuning_augment,
    pretraining_augment,
)
from internvideo_jax.data.transforms.frames import eval_frame
from internvideo_jax.data.transforms.sampling import sample_indices
from internvideo_jax.data.transforms.views import test_views
from internvideo_jax.environment import usable_cpus

# A broken clip's neighbours are tried up to this many times; so many in a row are a broken disk.
MAX_TRIES = 16
# Left and right are part of what its labels say.
NEVER_FLIPPED = "ssv2"

Arrays = dict[str, Any]


class BrokenClips(ValueError):
    """No clip can be read any more."""


class Problem(NamedTuple):
    """A clip that cannot be used, and why."""

    id: str
    reason: str


def broken_clips(problems: Sequence[Problem]) -> BrokenClips:
    """The error of clips of which none can be read."""
    listed = "".join(f"\n  {problem.id}: {problem.reason}" for problem in problems)
    return BrokenClips(
        f"expected clips that can be read, found {len(problems)} in a row that cannot; check the"
        f" paths and their root, the disk, and all clips with `internvideo-jax scan`:{listed}"
    )


class Clips:
    """All clips of a config, those of its mixture one set after the other.

    Args:
      config: which clips.
      use_cache: whether clips come from `config.cache_dir`, if that is set, which is made if need
        be; not for those who only want to know which clips there are.

    Attributes:
      weights: shares of the sets in a mixture.

    Raises:
      ValueError: a set cannot be opened, or has labels that do not fit the config.
    """

    def __init__(self, config: DataConfig, *, use_cache: bool = False):
        members = config.members
        self.weights = tuple(member.weight for member in members)
        sources: list[ClipSource] = []
        for member in members:
            source: ClipSource = open_source(member, num_classes=config.num_classes)
            if not len(source):
                raise ValueError(f"{member.name}: expected clips, found none")
            many = source.first_of_many_labels() if isinstance(source, RecordSource) else None
            if many is not None and config.num_classes is not None:
                label_array(source[many].record, config)
            if use_cache and config.cache_dir is not None:
                source = CachedSource(source, config.cache_dir, num_threads=usable_cpus())
            sources.append(source)
        self._sources = sources
        self._ends = list(itertools.accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> SourceClip:
        member = self._member(index)
        return self._sources[member][index - self.bounds(member)[0]]

    @property
    def num_sets(self) -> int:
        """Sets in the mixture, or 1."""
        return len(self._sources)

    def bounds(self, member: int) -> tuple[int, int]:
        """First index of a set, and the one after its last."""
        end = self._ends[member]
        return end - len(self._sources[member]), end

    def fingerprint(self) -> str:
        """Changes with the clips of all sets, their order and the weights of a mixture."""
        parts = (*(source.fingerprint() for source in self._sources), repr(self.weights))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def neighbour(self, index: int, distance: int) -> int:
        """The index so many places further on in the same set, which begins again at its end."""
        first, end = self.bounds(self._member(index))
        return first + (index - first + distance) % (end - first)

    def name(self, index: int) -> str:
        """The clip's id, or as much as is known where it cannot even be looked up."""
        try:
            return self[index].record.id
        except (ValueError, OSError):
            return f"clip {index}"

    def _member(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)


def label_array(record: ClipRecord, config: DataConfig) -> np.ndarray:
    """A clip's label: int32 `[]`, or float32 multi-hot `[C]` for `multi_label`.

    Raises:
      ValueError: there is none, it is not below C, or there are several without `multi_label`.
    """
    count = config.num_classes or 0
    labels = record.label if isinstance(record.label, tuple) else (record.label,)
    known = [label for label in labels if label is not None and 0 <= label < count]
    if len(known) < len(labels):
        raise ValueError(
            f"{record.id}: expected a label from 0 to {count - 1}, found {record.label}; correct"
            " the annotation or num_classes"
        )
    if config.multi_label:
        array = np.zeros(count, np.float32)
        array[known] = 1
        return array
    if len(known) != 1:
        raise ValueError(
            f"{record.id}: expected one label, found {record.label}; set multi_label if clips have"
            " any number of them"
        )
    return np.asarray(known[0], np.int32)


class ExampleOrder:
    """The clip of every training example, without end.

    Every set is shuffled anew for each pass over it; a mixture takes from its sets by weight.
    """

    def __init__(self, clips: Clips, seed: int):
        parts = []
        for member in range(clips.num_sets):
            own_seed = int(np.random.SeedSequence((seed, member)).generate_state(1)[0])
            part = grain.MapDataset.range(*clips.bounds(member))
            parts.append(part.shuffle(seed=own_seed).repeat(None))
        mixed = len(parts) > 1
        self._order = grain.MapDataset.mix(parts, clips.weights) if mixed else parts[0]

    def __getitem__(self, number: int) -> int:
        """The index of the clip of an example."""
        return int(self._order[number])


class TrainExamples:
    """Training examples by number; calling it gives the rows of one.

    The draws of example n come from (seed, n) alone. A clip that cannot be read is replaced by the
    next one of its set, with draws of its own.
    """

    def __init__(self, clips: Clips, config: DataConfig, seed: int):
        self._clips = clips
        self._config = config
        self._seed = seed
        self._order = ExampleOrder(clips, seed)
        self._finetuning = {
            flip: FinetuneAugmentation(
                config.image_size,
                rand_augment=config.rand_augment,
                flip=flip,
                erase_probability=config.erase_probability,
            )
            for flip in (False, True)
        }

    def __call__(self, number: int) -> Arrays:
        """Rows of the example, `[num_sample, ...]` each, and `problems`, a list of `Problem`.

        Raises:
          BrokenClips: `MAX_TRIES` clips in a row cannot be read.
        """
        problems: list[Problem] = []
        chosen = self._order[number]
        for attempt in range(MAX_TRIES):
            index = self._clips.neighbour(chosen, attempt)
            rng = np.random.default_rng((self._seed, number, attempt))
            try:
                clip = self._clips[index]
                with clip.open() as reader:
                    video = self._video(reader, clip.record, rng)
            except (ValueError, OSError) as error:
                problems.append(Problem(self._clips.name(index), reason(error)))
                continue
            rows = len(video)
            arrays: Arrays = {
                "video": video,
                "index": np.full(rows, index, np.int64),
                "replaced": np.full(rows, attempt > 0),
                "problems": problems,
            }
            if self._config.num_classes is not None:
                arrays["label"] = np.stack([label_array(clip.record, self._config)] * rows)
            return arrays
        raise broken_clips(problems)

    def _video(
        self, reader: ClipReader, record: ClipRecord, rng: np.random.Generator
    ) -> np.ndarray:
        """`[num_sample, T, size, size, 3]`, uint8 or normalised float32."""
        config = self._config
        size, copies = config.image_size, config.num_sample
        indices = sample_indices(
            config.sampling,
            reader.num_frames,
            config.num_frames,
            rate=config.sampling_rate,
            rng=rng,
        )
        if config.augmentation == "none":
            view = reader.read(indices, transform=lambda frame: eval_frame(frame, size))
            return np.stack([view] * copies)
        frames = reader.read(indices)
        flip = config.flip and record.source != NEVER_FLIPPED
        if config.augmentation == "pretraining":
            return np.stack([pretraining_augment(frames, rng, size, flip) for _ in range(copies)])
        finetuning = self._finetuning[flip]
        return np.stack([finetuning_augment(frames, rng, finetuning) for _ in range(copies)])


class EvalExamples:
    """Temporal views of all clips by number (clip after clip); calling it gives a view's crops."""

    def __init__(self, clips: Clips, config: DataConfig):
        self._clips = clips
        self._config = config

    def __len__(self) -> int:
        return len(self._clips) * self._config.segments

    def __call__(self, number: int) -> Arrays:
        """Rows of one temporal view, `[crops, ...]` each; `error` says why a clip has no pixels."""
        config = self._config
        crops, size = config.crops, config.image_size
        index, segment = divmod(number, config.segments)
        error = ""
        label = None
        try:
            clip = self._clips[index]
            if config.num_classes is not None:
                label = label_array(clip.record, config)
            with clip.open() as reader:
                video = self._video(reader, segment)
        except (ValueError, OSError) as problem:
            error = reason(problem)
            video = np.zeros((crops, config.num_frames, size, size, 3), np.uint8)
        rows: Arrays = {
            "video": video,
            "index": np.full(crops, index, np.int64),
            "segment": np.full(crops, segment, np.int32),
            "crop": np.arange(crops, dtype=np.int32),
            "valid": np.full(crops, not error),
            "error": np.array([error] * crops),
        }
        if config.num_classes is not None:
            rows["label"] = np.stack([_no_label(config) if label is None else label] * crops)
        return rows

    def _video(self, reader: ClipReader, segment: int) -> np.ndarray:
        config = self._config
        size = config.image_size
        # One view is the validation of upstream, several are its test.
        indices = sample_indices(
            config.sampling,
            reader.num_frames,
            config.num_frames,
            rate=config.sampling_rate,
            view=None if config.segments == 1 else (segment, config.segments),
        )
        if config.crops == 1:
            return reader.read(indices, transform=lambda frame: eval_frame(frame, size))[None]
        return test_views(reader.read(indices), size, config.crops)

    def padding(self, count: int) -> Arrays:
        """So many rows that are no clip's."""
        config = self._config
        size = config.image_size
        rows: Arrays = {
            "video": np.zeros((count, config.num_frames, size, size, 3), np.uint8),
            "index": np.full(count, -1, np.int64),
            "segment": np.zeros(count, np.int32),
            "crop": np.zeros(count, np.int32),
            "valid": np.zeros(count, bool),
            "error": np.full(count, ""),
        }
        if config.num_classes is not None:
            rows["label"] = np.repeat(_no_label(config)[None], count, axis=0)
        return rows


def _no_label(config: DataConfig) -> np.ndarray:
    """What stands for the label of a row without a clip."""
    if config.multi_label:
        return np.zeros(config.num_classes or 0, np.float32)
    return np.asarray(-1, np.int32)


def join_rows(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The rows of several examples below each other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
