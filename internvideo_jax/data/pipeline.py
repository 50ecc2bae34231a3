"""Batches for training and evaluation.

Training examples are numbered without end: example n is a clip (`examples.ExampleOrder`) and draws
from (seed, n) alone, and batch k of the run holds the examples k * batch_size and following. So a
run can begin at any example, with any number of processes and workers, and sees the same bytes.
"""

import itertools
import logging
import math
import sys
from collections.abc import Iterator
from typing import Any, Self

import grain
import numpy as np
from absl import flags

from internvideo_jax.data.config import ClipSet, DataConfig, MixtureMember
from internvideo_jax.data.examples import (
    MAX_TRIES,
    Arrays,
    BrokenClips,
    Clips,
    EvalExamples,
    Problem,
    TrainExamples,
    broken_clips,
    join_rows,
)
from internvideo_jax.data.sources.clips import reason
from internvideo_jax.data.watchdog import BackgroundIterator, StalledLoader
from internvideo_jax.environment import usable_cpus

__all__ = [
    "BrokenClips",
    "ClipSet",
    "DataConfig",
    "MixtureMember",
    "StalledLoader",
    "TrainBatches",
    "clip_ids",
    "describe",
    "eval_batches",
    "steps_per_epoch",
    "train_batches",
]

Batch = dict[str, np.ndarray]

# Examples that a process holds ready, where batches are large; more would be memory for nothing.
MAX_READY = 64

_log = logging.getLogger(__name__)


class TrainBatches:
    """Training batches without end; `close` it when enough is enough.

    Attributes:
      broken: reasons of clips that could not be read so far, by their ids.
    """

    def __init__(self, batches: BackgroundIterator[list[Arrays]]):
        self._batches = batches
        self.broken: dict[str, str] = {}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        examples = next(self._batches)
        for example in examples:
            for problem in example.pop("problems"):
                if problem.id not in self.broken:
                    self.broken[problem.id] = problem.reason
                    _log.warning("replaced by the next clip: %s: %s", problem.id, problem.reason)
        return join_rows(examples)

    def close(self) -> None:
        """Ends loading."""
        self._batches.close()


def train_batches(
    config: DataConfig,
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
      batch_size: examples (clips) in a batch over all processes, augmented copies not counted.
      seed: of the order of the clips and of all draws.
      start: number of the first example; a run that resumes passes steps * batch_size.
      process_index: p.
      process_count: P; divides batch_size.

    Returns:
      An iterator of dicts with rows b = batch_size / P * num_sample:
        video: `[b, T, S, S, 3]`; uint8, or float32 and normalised by `augmentation="finetuning"`.
        label: int32 `[b]` or, for `multi_label`, float32 `[b, C]`; absent without `num_classes`.
        index: int64 `[b]`, which clip of the config a row is (see `clip_ids`).
        replaced: bool `[b]`, whether it stands in for one that cannot be read.

    Raises:
      ValueError: the config's clips cannot be used, or batch_size does not divide.
      BrokenClips: from `next`, no clip can be read any more.
      StalledLoader: from `next`, loading hangs.
    """
    local = _share(batch_size, process_index, process_count)
    if seed < 0 or start < 0:
        raise ValueError(f"expected a seed and a start of at least 0, found {seed} and {start}")
    examples = TrainExamples(Clips(config, use_cache=True), config, seed)

    def make(first_batch: int) -> Iterator[list[Arrays]]:
        begin = start + first_batch * batch_size + process_index * local
        numbers = _Numbers(begin, local, batch_size)
        dataset = grain.MapDataset.range(sys.maxsize).map(numbers).map(examples)
        return _Groups(_load(dataset, config, local), local)

    return TrainBatches(BackgroundIterator(make, timeout=config.stall_timeout))


def eval_batches(
    config: DataConfig, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> BackgroundIterator[Batch]:
    """One pass over all views of all clips; every process gets equally many batches.

    Args:
      config: which clips; `segments` and `crops` say how often each is shown. One segment and one
        crop are the validation view, more are test views.
      batch_size: rows (views) in a batch over all processes.
      process_index: of this process.
      process_count: processes; divides batch_size.

    Returns:
      An iterator of dicts with rows b = batch_size / process_count, the last ones filled up:
        video: uint8 `[b, T, S, S, 3]`.
        label: as in `train_batches`; -1 or zeros where there is no clip.
        index: int64 `[b]`, which clip a row is; -1 in padding.
        segment: int32 `[b]`; crop: int32 `[b]`.
        valid: bool `[b]`, False in padding and where the clip cannot be read.
        error: str `[b]`, why it cannot be read; else "".

    Raises:
      ValueError: the config's clips cannot be used, or batch_size does not divide.
      StalledLoader: from `next`, loading hangs.
    """
    local = _share(batch_size, process_index, process_count)
    crops = config.crops
    examples = EvalExamples(Clips(config, use_cache=True), config)
    dataset = grain.MapDataset.range(process_index, len(examples), process_count).map(examples)
    rows_each = math.ceil(len(examples) / process_count) * crops
    num_batches = math.ceil(rows_each / local)

    def make(first_batch: int) -> Iterator[Batch]:
        views, rows = divmod(first_batch * local, crops)
        return _eval_rows(examples, dataset[views:], config, local, rows, num_batches - first_batch)

    return BackgroundIterator(make, timeout=config.stall_timeout)


def _eval_rows(
    examples: EvalExamples,
    dataset: "grain.MapDataset[Arrays]",
    config: DataConfig,
    local: int,
    skipped: int,
    num_batches: int,
) -> Iterator[Batch]:
    """Batches of `local` rows, but for the first `skipped` ones; filled up where views end."""
    views = _load(dataset, config, local)
    ready = examples.padding(0)
    try:
        for _ in range(num_batches):
            parts = [ready]
            missing = local + skipped - len(ready["index"])
            while missing > 0:
                part = next(views, None) or examples.padding(missing)
                missing -= len(part["index"])
                parts.append(part)
            rows = {name: array[skipped:] for name, array in join_rows(parts).items()}
            skipped = 0
            yield {name: array[:local] for name, array in rows.items()}
            ready = {name: array[local:] for name, array in rows.items()}
    finally:
        views.close()  # type: ignore[attr-defined]  # grain's iterators have it


def steps_per_epoch(config: DataConfig, batch_size: int) -> int:
    """Whole batches of `batch_size` clips in one pass over them, at least 1.

    Raises:
      ValueError: the config's clips cannot be used.
    """
    count = len(Clips(config))
    if count < batch_size:
        _log.warning(
            "fewer clips (%d) than in a batch (%d): it has some more than once", count, batch_size
        )
    return max(1, count // batch_size)


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """Number of clips, and a checksum that changes with them and their order, wherever they lie.

    Raises:
      ValueError: the config's clips cannot be used.
    """
    clips = Clips(config)
    return {"number": len(clips), "sha256": clips.fingerprint()}


def check_readable(config: DataConfig) -> None:
    """Looks for a clip that can be read, so that a wrong path shows before it is needed.

    Raises:
      ValueError: the config's clips cannot be used.
      BrokenClips: none of the first few can be read.
    """
    clips = Clips(config)
    problems = []
    for index in range(min(len(clips), MAX_TRIES)):
        try:
            with clips[index].open() as reader:
                reader.read([0])
            return
        except (ValueError, OSError) as error:
            problems.append(Problem(clips.name(index), reason(error)))
    raise broken_clips(problems)


def clip_ids(config: DataConfig, indices: np.ndarray) -> list[str]:
    """Ids of clips by the `index` that batches state.

    Raises:
      ValueError: the config's clips cannot be used.
    """
    clips = Clips(config)
    return [clips.name(int(index)) for index in indices]


def describe(config: DataConfig) -> dict[str, Any]:
    """What a config amounts to, ready for JSON: sets of clips, and the rows of a training batch.

    Raises:
      ValueError: the config's clips cannot be used.
    """
    clips = Clips(config)
    sets = [
        {"name": member.name, "clips": end - first, "weight": member.weight}
        for number, member in enumerate(config.members)
        for first, end in [clips.bounds(number)]
    ]
    size = config.image_size
    dtype = "float32" if config.augmentation == "finetuning" else "uint8"
    row = {"video": f"{dtype} {[config.num_frames, size, size, 3]}"}
    if config.num_classes is not None:
        row["label"] = f"float32 {[config.num_classes]}" if config.multi_label else "int32 []"
    return {"clips": len(clips), "sets": sets, "row": row, "rows_per_clip": config.num_sample}


class _Numbers:
    """Numbers of a process's examples: runs of `local` that begin `step` apart."""

    def __init__(self, begin: int, local: int, step: int):
        self._begin, self._local, self._step = begin, local, step

    def __call__(self, position: int) -> int:
        batch, row = divmod(position, self._local)
        return self._begin + batch * self._step + row


class _Groups(Iterator[list[Arrays]]):
    """Lists of `size` consecutive items; closes what they come from."""

    def __init__(self, items: Iterator[Arrays], size: int):
        self._items, self._size = items, size

    def __next__(self) -> list[Arrays]:
        return list(itertools.islice(self._items, self._size))

    def close(self) -> None:
        self._items.close()  # type: ignore[attr-defined]  # grain's iterators have it


def _load(
    dataset: "grain.MapDataset[Arrays]", config: DataConfig, batch_size: int
) -> Iterator[Arrays]:
    """The examples in order, made by threads of this process or by processes."""
    threads = max(1, usable_cpus() // max(config.workers, 1))
    ready = max(2 * threads, min(batch_size, MAX_READY))
    loaded = dataset.to_iter_dataset(grain.ReadOptions(threads, ready))
    if config.workers:
        # grain's worker processes take over flags, which nobody has parsed outside of `absl.app`.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        buffer = max(2, ready // config.workers)
        loaded = loaded.mp_prefetch(
            grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=buffer)
        )
    return iter(loaded)


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"expected a batch size that divides by {process_count} processes, found {batch_size}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"expected a process index below {process_count}, found {process_index}")
    return batch_size // process_count
