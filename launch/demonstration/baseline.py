"""What a loss is worth: the best that a predictor reaches which never looks at the clips."""

from collections.abc import Iterable
from itertools import islice

import jax
import numpy as np

from internvideo_jax.training.stage import HostBatch
from internvideo_jax.training.stages.alignment import AlignmentStage


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
