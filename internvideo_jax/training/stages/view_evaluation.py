"""Accuracy of a classifier during training, over the views of the evaluation clips."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from internvideo_jax.evaluation.classification import top_k_accuracy
from internvideo_jax.evaluation.views import merge_views
from internvideo_jax.training.stage import Evaluation, HostBatch, Variables

# The batch axis of a mesh (`parallel.mesh.AXES`).
_BATCH_AXES = ("data", "fsdp")
_NOTES = ("label", "index", "segment", "crop", "valid")


def view_accuracy(
    logits: Callable[[Variables, jax.Array], jax.Array], batches: Callable[[], Iterator[HostBatch]]
) -> Evaluation:
    """An evaluation with the percentages `top1` and `top5` and the number of `broken` views.

    Args:
      logits: of variables and clips `[B, T, H, W, 3]`, `[B, C]`; is jitted here.
      batches: starts a pass over this process's share of the views; they have `video`, `label`,
        `index`, `segment`, `crop` and `valid`.
    """
    # Every process then has the logits of all rows.
    forward = jax.jit(lambda variables, video: _replicated(logits(variables, video)))

    def evaluate(variables: Variables) -> dict[str, float]:
        sharding = next(iter(jax.tree.leaves(variables))).sharding
        scores, notes = [], []
        for batch in batches():
            if "label" not in batch:
                raise ValueError(
                    "expected evaluation clips with labels; set eval_data.num_classes to the"
                    " number of classes"
                )
            rows = len(batch["video"])
            video = _spread(batch["video"], sharding)
            per_process = len(video) // jax.process_count()
            found = np.asarray(forward(variables, video))
            # Each process's rows are followed by its padding.
            scores.append(
                found.reshape(jax.process_count(), per_process, -1)[:, :rows].reshape(
                    -1, found.shape[-1]
                )
            )
            notes.append({name: _gathered(batch[name]) for name in _NOTES})
        return _accuracy(np.concatenate(scores), _concatenated(notes))

    return evaluate


def _accuracy(scores: np.ndarray, notes: dict[str, np.ndarray]) -> dict[str, float]:
    valid = notes["valid"]
    broken = float((~valid & (notes["index"] >= 0)).sum())
    if not valid.any():
        raise ValueError("expected at least one readable clip to evaluate, found none")
    ids = notes["index"][valid].tolist()
    merged = merge_views(ids, scores[valid], notes["segment"][valid], notes["crop"][valid])
    label_of = dict(zip(ids, notes["label"][valid].tolist(), strict=True))
    labels = np.array([label_of[clip] for clip in merged.ids])
    return {
        "top1": top_k_accuracy(merged.probabilities, labels, 1),
        "top5": top_k_accuracy(merged.probabilities, labels, 5),
        "broken": broken,
    }


def _replicated(x: jax.Array) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def _spread(video: np.ndarray, sharding: Any) -> jax.Array:
    """This process's rows, padded with the first, as its part of an array split over the batch."""
    if not isinstance(sharding, NamedSharding):
        return jax.device_put(video, sharding)
    mesh = sharding.mesh
    ways = math.prod(mesh.shape[axis] for axis in _BATCH_AXES)
    multiple = max(ways // jax.process_count(), 1)
    missing = -len(video) % multiple
    video = np.concatenate([video, np.repeat(video[:1], missing, axis=0)])
    split = NamedSharding(mesh, PartitionSpec(_BATCH_AXES))
    return jax.make_array_from_process_local_data(split, video)


def _gathered(x: np.ndarray) -> np.ndarray:
    """The rows of all processes."""
    if jax.process_count() == 1:
        return x
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _concatenated(notes: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([n[name] for n in notes]) for name in _NOTES}
