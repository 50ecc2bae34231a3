"""What a loss is worth: the best that a predictor reaches which never looks at the clips."""

import math
from collections.abc import Iterable
from itertools import islice

import jax
import numpy as np

from internvideo_jax.training.stage import HostBatch
from internvideo_jax.training.stages.alignment import AlignmentStage
from internvideo_jax.training.stages.cross_modal import CrossModalStage


def constant_losses(
    stage: AlignmentStage, batches: Iterable[HostBatch], count: int
) -> dict[str, float]:
    """Losses of the best constant for each layer and place: by term, and their sum as `loss`.

    Of unit targets x, the best constant is the direction of their mean, and its loss 2 - 2 |mean|.

    Args:
      stage: with cached teachers.
      batches: of its training.
      count: batches to look at.
    """
    num_tokens = stage.config.encoder.num_tokens
    draw = jax.jit(stage.targets)
    losses: dict[str, float] = {}
    sums: dict[str, np.ndarray] = {}
    rows: dict[str, int] = {}
    for number, batch in enumerate(islice(batches, count)):
        inputs = {name: batch[name] for name in stage.example_batch(1)}
        targets = jax.device_get(draw({}, inputs, jax.random.key(number)))
        kept = targets.pop("kept")
        for name, features in targets.items():
            # The pooled feature has one layer and one place; patch tokens are the last kept ones.
            layered = features[:, None, None] if features.ndim == 2 else features
            places = np.zeros_like(kept[:, :1]) if features.ndim == 2 else kept
            places = places[:, -layered.shape[2] :]
            shape = (layered.shape[1], num_tokens, layered.shape[3])
            total = sums.setdefault(name, np.zeros(shape))
            for layer in range(shape[0]):
                np.add.at(total[layer], places, layered[:, layer])
            rows[name] = rows.get(name, 0) + layered[..., 0].size
    for name, total in sums.items():
        lengths = np.linalg.norm(total, axis=-1)
        losses[name] = float(2 - 2 * lengths.sum() / rows[name])
    return losses | {"loss": sum(stage.weights[name] * x for name, x in losses.items())}


def constant_cross_modal_losses(
    stage: CrossModalStage, batches: Iterable[HostBatch], count: int
) -> dict[str, float]:
    """Losses of whoever looks at neither clips nor texts: by metric, and their sum as `loss`.

    All of a batch are equally likely to belong together, a third of the pairs match, and words are
    as frequent as they are.

    Args:
      stage: of the batches' media.
      batches: of its training.
      count: batches to look at.
    """
    assert stage.vocabulary is not None
    rows, words = 0, np.zeros(stage.vocabulary.size)
    for batch in islice(batches, count):
        rows = len(batch["text"])
        words += np.bincount(batch["text"].ravel(), minlength=len(words))
    # What is never masked.
    words[[stage.vocabulary.pad_id, stage.vocabulary.cls_id]] = 0
    kinds = {"c": math.log(rows), "tm": _entropy(np.array([1, 2])), "lm": _entropy(words)}
    losses = {
        term: next(loss for ending, loss in kinds.items() if term.endswith(ending))
        for term in stage.losses
    }
    total = sum(weight * losses[term] for term, weight in stage.losses.items())
    return {f"{stage.kind}/{term}": loss for term, loss in losses.items()} | {"loss": total}


def _entropy(counts: np.ndarray) -> float:
    """Of a draw with chances in proportion to counts, in nats."""
    chances = counts[counts > 0] / counts.sum()
    return float(-np.sum(chances * np.log(chances)))
