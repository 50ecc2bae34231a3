"""Steps whose loss or gradients are not finite: counted, and too many of them in a row refused."""

import collections
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from internvideo_jax.files import write_json
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stage import HostBatch

BAD_EXAMPLES = "bad_examples.json"

# Steps that may be under way at once: one on the device, one waiting for it.
_IN_FLIGHT = 2


class NonFiniteError(ValueError):
    """Too many steps in a row with a loss or gradient that is not finite."""


class BadSteps:
    """Counts non-finite steps a little behind the device, so that it need not wait for the host."""

    def __init__(self, config: TrainConfig, workdir: Path) -> None:
        self._config = config
        self._target = workdir / BAD_EXAMPLES
        self._pending: collections.deque[tuple[int, Any, Any]] = collections.deque()
        self._streak: list[tuple[int, Any]] = []

    def add(self, step: int, metrics: dict[str, jax.Array], batch: HostBatch) -> None:
        """Notes a step that has been started; looks at those that should be done."""
        self._pending.append((step, metrics["bad_steps"], batch.get("index")))
        self.check(_IN_FLIGHT)

    def check(self, in_flight: int = 0) -> None:
        """Looks at all noted steps but the last few.

        Raises:
          NonFiniteError: too many bad ones in a row.
        """
        while len(self._pending) > in_flight:
            step, count, index = self._pending.popleft()
            num_bad = int(jax.device_get(count))
            self._streak = [*self._streak, (step, index)] if num_bad else []
            if num_bad >= self._config.max_bad_steps:
                self._stop(num_bad)

    def _stop(self, num_bad: int) -> None:
        rows = []
        for step, index in self._streak:
            if index is not None and jax.process_count() > 1:
                index = multihost_utils.process_allgather(index, tiled=True)
            rows.append(
                {
                    "step": step,
                    "first_example": (step - 1) * self._config.batch_size,
                    "index": None if index is None else np.asarray(index).tolist(),
                }
            )
        if jax.process_index() == 0:
            write_json(self._target, rows)
        raise NonFiniteError(
            f"the loss or its gradients were not finite in {num_bad} steps in a row, the last of"
            f" them step {self._streak[-1][0]}; {self._target} lists the dataset indices of their"
            " rows. Check these clips, or lower the learning rate"
        )
