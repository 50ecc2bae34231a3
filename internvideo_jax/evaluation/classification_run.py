"""Running a classifier over the views of clips: from files, or from batches of a training run."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.clips import open_clip
from internvideo_jax.data.decode.video import DEFAULT_LIMITS, Limits, VideoError
from internvideo_jax.data.transforms.frames import center_crop, long_side_crops, resize_short_side
from internvideo_jax.data.transforms.views import EvalViews
from internvideo_jax.environment import usable_cpus
from internvideo_jax.evaluation.ahead import map_ahead
from internvideo_jax.evaluation.classification import (
    confusion_counts,
    mean_average_precision,
    top_k_accuracy,
)
from internvideo_jax.evaluation.views import merge_views
from internvideo_jax.kernels.attention.request import current_platform
from internvideo_jax.models import VideoClassifier
from internvideo_jax.preprocessing import VideoPreprocessing, normalize

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel

Forward = Callable[[np.ndarray], Any]
Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class ClipViews:
    """All views of a clip, in the order of `data.transforms.views`.

    Attributes:
      index: number of the clip in its data set.
      views: uint8 `[S * K, T, size, size, 3]`.
      frame_indices: frames of each segment, int64 `[S, T]`.
      num_frames: frames of the clip.
    """

    index: int
    views: np.ndarray
    frame_indices: np.ndarray
    num_frames: int


@dataclasses.dataclass(frozen=True)
class UnreadableClip:
    """A clip without views: its number in the data set, and what reading it ended with."""

    index: int
    error: ValueError

    @property
    def reason(self) -> str:
        """The error's message without the path."""
        return self.error.reason if isinstance(self.error, VideoError) else str(self.error)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of clips, merged over their views.

    Attributes:
      index: numbers of the clips in their data set, int64 `[N]`, ascending.
      probabilities: float32 `[N, C]`.
      num_views: views of each clip, int64 `[N]`.
      labels: as the batches had them, by clip: int `[N]` or multi-hot `[N, C]`; None without.
      failed: numbers of clips with a view that could not be read, ascending; not among the others.
    """

    index: np.ndarray
    probabilities: np.ndarray
    num_views: np.ndarray
    labels: np.ndarray | None
    failed: np.ndarray


def read_views(record: ClipRecord, plan: EvalViews, limits: Limits = DEFAULT_LIMITS) -> ClipViews:
    """Decodes all views of a clip at once: each of its frames is decoded no more than once.

    Raises:
      ValueError: a `VideoError`, or a picture too elongated.
    """
    with open_clip(record, limits=limits) as clip:
        indices = plan.indices(clip.num_frames)
        resize = functools.partial(resize_short_side, size=plan.image_size)
        frames = clip.read(indices.ravel(), transform=resize)
        num_frames = clip.num_frames
    if plan.is_validation:
        return ClipViews(0, center_crop(frames, plan.image_size)[None], indices, num_frames)
    squares = long_side_crops(frames, plan.crops)
    by_segment = squares.reshape(plan.crops, plan.segments, plan.num_frames, *squares.shape[2:])
    views = np.ascontiguousarray(by_segment.swapaxes(0, 1))
    return ClipViews(0, views.reshape(len(plan), *views.shape[2:]), indices, num_frames)


def view_batches(
    records: Sequence[ClipRecord],
    plan: EvalViews,
    *,
    batch_size: int,
    num_threads: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_clip: Callable[[ClipViews | UnreadableClip], None] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the views of clips, in the fields of `data.pipeline.eval_batches`.

    Clips are decoded ahead in threads, a few at a time; an unreadable one gives no views.

    Args:
      records: the clips.
      plan: their views.
      batch_size: B, views per batch; the last one is filled up.
      num_threads: decoding threads; by default one per CPU core.
      limits: what reading one clip may cost.
      on_clip: told about every clip, in order, before its views come.

    Yields:
      `video` uint8 `[B, T, size, size, 3]`, `index` (number of the clip; -1 is filling), `segment`,
      `crop` int64 `[B]`, and `valid` bool `[B]`.
    """

    def read(numbered: tuple[int, ClipRecord]) -> ClipViews | UnreadableClip:
        index, record = numbered
        try:
            return dataclasses.replace(read_views(record, plan, limits), index=index)
        except ValueError as error:
            return UnreadableClip(index, error)

    threads = num_threads or usable_cpus()
    rows: list[tuple[np.ndarray, int, int, int]] = []
    for clip in map_ahead(read, enumerate(records), threads, threads):
        if on_clip is not None:
            on_clip(clip)
        if isinstance(clip, UnreadableClip):
            continue
        rows += [
            (view, clip.index, *divmod(number, plan.crops))
            for number, view in enumerate(clip.views)
        ]
        while len(rows) >= batch_size:
            yield _batch(rows[:batch_size], batch_size)
            rows = rows[batch_size:]
    if rows:
        yield _batch(rows, batch_size)


def predict(forward: Forward, batches: Iterable[Batch]) -> Predictions:
    """Runs a classifier over batches of views and merges them by clip.

    With several processes each passes its share of the batches, of the same number and size, and
    all get the whole result.

    Args:
      forward: logits `[B, C]` of a batch's `video`.
      batches: with `video`, `index`, `segment`, `crop`, `valid`, and `label` where it is known; see
        `view_batches`. An invalid row with an index is a view that could not be read.

    Raises:
      ValueError: there are no batches, or logits are NaN.
    """
    names = ("index", "segment", "crop", "valid", "label")
    columns: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        row = {name: batch[name] for name in names if name in batch}
        row["logits"] = np.asarray(forward(batch["video"]), np.float32)
        for name, values in row.items():
            columns.setdefault(name, []).append(np.asarray(values))
    if not columns:
        raise ValueError("expected at least one batch of views, found none; check the annotations")
    table = {name: np.concatenate(parts) for name, parts in columns.items()}
    if jax.process_count() > 1:
        table = multihost_utils.process_allgather(table, tiled=True)
    return _merged(table)


def classification_metrics(forward: Forward, batches: Iterable[Batch]) -> dict[str, float]:
    """The metrics of a classifier on labelled batches of views: an evaluation during training.

    Args:
      forward: as in `predict`.
      batches: as in `predict`, with `label`: classes `[B]`, or multi-hot `[B, C]`.

    Returns:
      `metrics` of the clips that could be read, their number `clips`, and that of the `failed`.

    Raises:
      ValueError: no batches or no labels, no clip could be read, or logits are NaN.
    """
    predictions = predict(forward, batches)
    if predictions.labels is None:
        raise ValueError("expected batches with `label`, found none; set num_classes of the data")
    values = metrics(predictions.probabilities, predictions.labels)
    counts = {"clips": len(predictions.index), "failed": len(predictions.failed)}
    return values | {name: float(count) for name, count in counts.items()}


def metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Percentages: "top1", "top5", "mean_class_accuracy" (one label per clip) and "mAP".

    There is no "top5" of five or fewer classes: it would be 100, whatever the model.

    Args:
      probabilities: `[N, C]`.
      labels: classes `[N]`, or multi-hot `[N, C]`, for which there is "mAP" alone.

    Raises:
      ValueError: no clips.
    """
    if not len(probabilities):
        raise ValueError("expected at least one clip that could be read, found none")
    targets = multi_hot(labels, probabilities.shape[1])
    values = {"mAP": mean_average_precision(probabilities, targets)}
    if labels.ndim == 2:
        return values
    counts = confusion_counts(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    clips = counts.sum(axis=1)
    recalls = counts.diagonal()[clips > 0] / clips[clips > 0]
    ranks = (1, 5) if probabilities.shape[1] > 5 else (1,)
    return {
        **{f"top{k}": top_k_accuracy(probabilities, labels, k) for k in ranks},
        "mean_class_accuracy": float(100 * recalls.mean()),
        **values,
    }


def multi_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Classes `[N]` or multi-hot `[N, C]` as bool `[N, C]`."""
    labels = np.asarray(labels)
    return labels != 0 if labels.ndim == 2 else np.eye(num_classes, dtype=bool)[labels]


def classifier_forward(model: "SavedModel") -> Forward:
    """The function from uint8 views `[B, T, H, W, 3]` to logits `[B, C]` of a saved classifier.

    Raises:
      ValueError: the model is no classifier.
    """
    if not isinstance(model.module, VideoClassifier):
        raise ValueError(
            f"expected a video classifier, found {type(model.module).__name__}; an encoder becomes"
            " one by training with configs/stage1/finetune.py or probe.py"
        )
    return functools.partial(
        _logits,
        model.variables,
        module=model.module,
        preprocessing=model.preprocessing.require_video(),
    )


@functools.partial(jax.jit, static_argnames=("module", "preprocessing"))
def _logits(
    variables: dict[str, Any],
    video: jax.Array,
    *,
    module: nn.Module,
    preprocessing: VideoPreprocessing,
) -> jax.Array:
    def classify(video: jax.Array) -> jax.Array:
        output: Any = module.apply(variables, normalize(video, preprocessing))
        return output.logits

    if current_platform() != "cpu" or len(video) == 1:
        return classify(video)
    # A CPU is faster clip by clip, for the reason given in `models.encode`.
    return jax.lax.map(lambda clip: classify(clip[None])[0], video)


def _batch(
    rows: Sequence[tuple[np.ndarray, int, int, int]], batch_size: int
) -> dict[str, np.ndarray]:
    filling = batch_size - len(rows)
    video, *numbers = zip(*rows, *[(rows[-1][0], -1, 0, 0)] * filling, strict=True)
    index, segment, crop = (np.array(column, np.int64) for column in numbers)
    return {
        "video": np.stack(video),
        "index": index,
        "segment": segment,
        "crop": crop,
        "valid": index >= 0,
    }


def _merged(table: Mapping[str, np.ndarray]) -> Predictions:
    index, valid = table["index"], table["valid"].astype(bool)
    failed = np.unique(index[~valid & (index >= 0)])
    used = np.flatnonzero(valid & ~np.isin(index, failed))
    # In the order of the data set, whatever process or batch a view was in.
    used = used[np.argsort(index[used], kind="stable")]
    ids = index[used].tolist()
    merged = merge_views(ids, table["logits"][used], table["segment"][used], table["crop"][used])
    _, first = np.unique(index[used], return_index=True)
    return Predictions(
        index=np.array(merged.ids, np.int64),
        probabilities=merged.probabilities,
        num_views=merged.num_views,
        labels=table["label"][used][first] if "label" in table else None,
        failed=failed,
    )
