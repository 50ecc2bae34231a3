"""Batches for training and evaluation, made of the fields that a stage declares (`data.fields`).

Training examples are numbered without end: example n is a clip (`examples.ExampleOrder`) and draws
from (seed, n) alone, and batch k of the run holds the examples k * batch_size and following. So a
run can begin at any example, with any number of processes and workers, and sees the same bytes.
With `mixture_by="batch"`, batch k is of one kind of media: which one follows from k and the weights
alone, and so does how many of its kind came before, which says where its examples begin.
"""

import functools
import itertools
import logging
import math
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import grain
import numpy as np
from absl import flags

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.examples import (
    Clips,
    EvalExamples,
    Example,
    TrainExamples,
    join_rows,
)
from internvideo_jax.data.sources.source import ClipSource
from internvideo_jax.data.watchdog import BackgroundIterator, LostWorker
from internvideo_jax.environment import usable_cpus
from internvideo_jax.processes import end_with_parent, start_resource_tracker

Batch = dict[str, np.ndarray]
# Names of a batch's fields, which may differ by the name of its media.
Fields = Sequence[str] | Mapping[str, Sequence[str]]

# Examples that a process holds ready, where batches are large; more would be memory for nothing.
MAX_READY = 64
# How often a batch may have the same clip: a larger one is no batch of these data.
_MAX_REPEATS = 8
# As many numbers as grain can count exactly in floats.
_ENDLESS = 2**62
# What grain says of a worker process that ended by itself; it has no type of its own for that.
_LOST_WORKER = re.compile(r"process was terminated unexpectedly with exit code (-?\d+)")

_log = logging.getLogger(__name__)


class TrainBatches:
    """Training batches without end; `close` it when enough is enough.

    Attributes:
      broken: reasons of clips that could not be read so far, by their ids.
    """

    def __init__(self, batches: BackgroundIterator[tuple[Batch, dict[str, str]]]):
        self._batches = batches
        self.broken: dict[str, str] = {}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch, problems = next(self._batches)
        for name, reason in problems.items():
            if name not in self.broken:
                self.broken[name] = reason
                _log.warning("replaced by the next clip: %s: %s", name, reason)
        return batch

    def close(self) -> None:
        """Ends loading."""
        self._batches.close()


def train_batches(
    config: DataConfig,
    fields: Fields,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Endless batches, of which this process gets its share.

    Process p of P gets the p-th P-th of each batch, so the batch over all processes, in the order
    of their numbers, does not depend on P.

    Args:
      config: which clips, and what becomes of them.
      fields: names of what batches are made of, perhaps by the name of their media; see
        `data.fields`.
      batch_size: examples (clips) in a batch over all processes, augmented copies not counted.
      seed: of the order of the clips and of all draws.
      start: number of the first example; a run that resumes passes steps * batch_size, whatever the
        sizes of the batches of single media.
      process_index: p.
      process_count: P; divides batch_size.

    Returns:
      An iterator of dicts with rows b = batch_size / P * num_sample: the fields' columns, and
        index: int64 `[b]`, which clip of the config a row is (see `examples.Clips`).
        replaced: bool `[b]`, whether it stands in for one that cannot be read.
        media: str `[b]`, of the batch; with `mixture_by="batch"`.

    Raises:
      ValueError: the config's clips cannot be used, a field is not to be had, or batch_size does
        not divide.
      BrokenClips: from `next`, no clip can be read any more.
      StalledLoader: from `next`, loading hangs.
      LostWorker: from `next`, worker processes die again and again.
    """
    if seed < 0 or start < 0:
        raise ValueError(f"expected a seed and a start of at least 0, found {seed} and {start}")
    rows = _TrainRows(config, fields, batch_size, seed, start, process_index, process_count)

    def make(first_batch: int) -> Iterator[tuple[Batch, dict[str, str]]]:
        dataset = grain.MapDataset.range(first_batch * rows.per_batch, _ENDLESS).map(rows)
        return _Joined(_load(dataset, config, rows.per_batch), rows.per_batch)

    return TrainBatches(BackgroundIterator(make, timeout=config.stall_timeout))


class _TrainRows:
    """The examples of a process, one batch after the other, by their position.

    Attributes:
      per_batch: positions that a batch takes up; the last ones of a short batch are empty.
    """

    def __init__(
        self,
        config: DataConfig,
        fields: Fields,
        batch_size: int,
        seed: int,
        start: int,
        process_index: int,
        process_count: int,
    ):
        clips = Clips(config, use_cache=True, with_sound=_with_sound(fields))
        kinds = clips.kinds()
        # Of a single kind nobody asks which.
        self._names = list(kinds) if config.mixture_by == "batch" else [""]
        self._examples: list[TrainExamples] = []
        self._sizes: list[int] = []
        turns, weights = [], []
        for stream, (media, sets) in enumerate(kinds.items()):
            first = clips.members[sets[0]]
            names = fields_of(fields, media)
            own = config.of_member(first)
            self._examples.append(TrainExamples(clips, own, names, seed, sets=sets, stream=stream))
            self._sizes.append(first.batch_size or batch_size)
            turns.append(grain.MapDataset.range(_ENDLESS).map(functools.partial(_pair, stream)))
            weights.append(sum(clips.members[number].weight for number in sets))
        self._turns = grain.MapDataset.mix(turns, weights) if len(turns) > 1 else None
        self._first_batch, self._offset = divmod(start, batch_size)
        if len(turns) > 1 and self._offset:
            raise ValueError(
                f"expected a start at a whole batch of {batch_size}, as each is of one kind of"
                f" media, found {start}"
            )
        self._process, self._count = process_index, process_count
        self.per_batch = max(_share(size, process_index, process_count) for size in self._sizes)

    def __call__(self, position: int) -> Example:
        batch, row = divmod(position, self.per_batch)
        kind, turn = 0, self._first_batch + batch
        if self._turns is not None:
            kind, turn = self._turns[turn]
        size = self._sizes[kind]
        local = size // self._count
        if row >= local:
            return {}
        number = self._offset + turn * size + self._process * local + row
        example = self._examples[kind](number)
        if self._names[kind]:
            example["media"] = np.full(len(example["index"]), self._names[kind])
        return example


def fields_of(fields: Fields, media: str) -> Sequence[str]:
    """The fields of batches of these media.

    Raises:
      ValueError: none are stated.
    """
    names = fields.get(media, ()) if isinstance(fields, Mapping) else fields
    if not names:
        raise ValueError(f"expected the fields of media {media!r}, found none; name some")
    return names


def _with_sound(fields: Fields) -> bool:
    """Whether any batch has sound."""
    groups = fields.values() if isinstance(fields, Mapping) else (fields,)
    return any("audio" in names for names in groups)


def _pair(stream: int, turn: int) -> tuple[int, int]:
    return stream, turn


def eval_batches(
    config: DataConfig,
    fields: Sequence[str],
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    source: ClipSource | None = None,
    num_threads: int | None = None,
) -> BackgroundIterator[Batch]:
    """One pass over all views of all clips; every process gets equally many batches.

    A single process gets no more rows than there are views: its last batch may be smaller. Several
    run one program together, so that their last batches are filled up.

    Args:
      config: which clips; `segments` and `crops` say how often each is shown. One segment and one
        crop are the validation view, more are test views.
      fields: names of what batches are made of; see `data.fields`.
      batch_size: rows (views) in a batch over all processes.
      process_index: of this process.
      process_count: processes; divides batch_size.
      source: clips to take instead of the config's own, such as `RecordSource(records)`.
      num_threads: threads that decode (in each worker); by default one per CPU core.

    Returns:
      An iterator of dicts with rows b = batch_size / process_count, or fewer in the last: the
      fields' columns (with `video`, also what is known of its frames), and
        index: int64 `[b]`, which clip a row is; -1 in padding.
        segment: int32 `[b]`; crop: int32 `[b]`.
        valid: bool `[b]`, False in padding and where the clip cannot be read.
        error: str `[b]`, why it cannot be read; else "".

    Raises:
      ValueError: the config's clips cannot be used, a field is not to be had, or batch_size does
        not divide.
      StalledLoader: from `next`, loading hangs.
      LostWorker: from `next`, worker processes die again and again.
    """
    local = _share(batch_size, process_index, process_count)
    views = config.segments * config.crops
    clips = Clips(config, use_cache=True, with_sound=_with_sound(fields), source=source)
    examples = EvalExamples(clips, config, fields)
    dataset = grain.MapDataset.range(process_index, len(examples), process_count).map(examples)
    rows_each = math.ceil(len(examples) / process_count) * views
    # With several processes, whole batches.
    total = rows_each if process_count == 1 else math.ceil(rows_each / local) * local

    def make(first_batch: int) -> Iterator[Batch]:
        skipped, rows = divmod(first_batch * local, views)
        loaded = _load(dataset[skipped:], config, math.ceil(local / views), num_threads)
        return _eval_rows(examples, loaded, local, rows, total - first_batch * local)

    return BackgroundIterator(make, timeout=config.stall_timeout, total=math.ceil(total / local))


def _eval_rows(
    examples: EvalExamples,
    loaded: "_Loaded",
    local: int,
    skipped: int,
    total: int,
) -> Iterator[Batch]:
    """Batches of `local` rows, `total` in all, after the first `skipped` ones; filled up where
    clips end before."""
    ready = examples.padding(0)
    try:
        for start in range(0, total, local):
            parts = [ready]
            missing = min(local, total - start) + skipped - len(ready["index"])
            while missing > 0:
                part = next(loaded, None) or examples.padding(missing)
                missing -= len(part["index"])
                parts.append(part)
            rows = {name: array[skipped:] for name, array in join_rows(parts).items()}
            skipped = 0
            yield {name: array[:local] for name, array in rows.items()}
            ready = {name: array[local:] for name, array in rows.items()}
    finally:
        loaded.close()


def steps_per_epoch(config: DataConfig, batch_size: int) -> int:
    """Whole batches in one pass over all clips, at least 1 of each kind of media.

    Args:
      config: which clips.
      batch_size: clips of a batch, where their kind has no size of its own.

    Raises:
      ValueError: the config's clips cannot be used, or as `check_batch_size`.
    """
    clips = Clips(config)
    steps = 0
    for sets in clips.kinds().values():
        count = sum(end - first for first, end in map(clips.bounds, sets))
        size = clips.members[sets[0]].batch_size or batch_size
        check_batch_size(size, count)
        if count < size:
            _log.warning(
                "fewer clips (%d) than in a batch (%d): it has some more than once", count, size
            )
        steps += max(1, count // size)
    return steps


def check_batch_size(batch_size: int, count: int) -> None:
    """Checks that batches of `batch_size` can be made of `count` clips.

    Raises:
      ValueError: it is below 1, or far more than they are.
    """
    if not 1 <= batch_size <= _MAX_REPEATS * count:
        raise ValueError(
            f"batch_size: expected 1 to {_MAX_REPEATS * count}, {_MAX_REPEATS} times the {count}"
            f" clips of the data, found {batch_size}; set another (--config.train.batch_size)"
        )


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """Number of clips, and a checksum that changes with them and their order, wherever they lie.

    Raises:
      ValueError: the config's clips cannot be used.
    """
    clips = Clips(config)
    return {"number": len(clips), "sha256": clips.fingerprint()}


class _Joined(Iterator[tuple[Batch, dict[str, str]]]):
    """Batches, with the reasons of their unreadable clips; closes what they come from."""

    def __init__(self, loaded: "_Loaded", per_batch: int):
        self._loaded, self._per_batch = loaded, per_batch
        self.close = loaded.close

    def __next__(self) -> tuple[Batch, dict[str, str]]:
        # Batches of several media may be shorter than the longest.
        examples = [part for part in itertools.islice(self._loaded, self._per_batch) if part]
        problems: dict[str, str] = {}
        for example in examples:
            problems |= example.pop("problems")
        return join_rows(examples), problems


class _Loaded(Iterator[Example]):
    """The examples of lists of them; closes what the lists come from, in whatever thread."""

    def __init__(self, lists: grain.DatasetIterator[list[Example]]):
        self._examples = itertools.chain.from_iterable(lists)
        self.close = lists.close

    def __next__(self) -> Example:
        try:
            return next(self._examples)
        except BrokenPipeError as error:
            raise LostWorker("a loading process died while it started") from error
        except RuntimeError as error:
            if not (match := _LOST_WORKER.search(str(error))):
                raise
            raise LostWorker(f"a loading process died ({_death(int(match[1]))})") from error


def _death(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "SIGKILL, as the system sends when memory is short"
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"


def _load(
    dataset: "grain.MapDataset[Example]",
    config: DataConfig,
    batch_size: int,
    num_threads: int | None = None,
) -> _Loaded:
    """The examples in order, made by threads of this process or by processes."""
    threads = num_threads or max(1, usable_cpus() // max(config.workers, 1))
    ready = max(2 * threads, min(batch_size, MAX_READY))
    # Handing over an example costs as much as reading it from a cache.
    together = math.gcd(batch_size, ready // (2 * threads))
    ready //= together
    lists = dataset.batch(together, batch_fn=list)
    loaded = lists.to_iter_dataset(grain.ReadOptions(threads, ready))
    if config.workers:
        start_resource_tracker()
        # grain's worker processes take over flags, which nobody has parsed outside of `absl.app`.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        buffer = max(2, ready // config.workers)
        loaded = loaded.mp_prefetch(
            grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=buffer),
            worker_init_fn=_start_worker,
        )
    return _Loaded(iter(loaded))


def _start_worker(index: int, count: int) -> None:
    end_with_parent()


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"expected a batch size that divides by {process_count} processes, found {batch_size}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"expected a process index below {process_count}, found {process_index}")
    return batch_size // process_count
