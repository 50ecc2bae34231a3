"""Learning-rate schedules of the released recipes.

Source: `cosine_scheduler` of upstream `InternVideo2/single_modality/utils.py`.
"""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int


def warmup_cosine(
    peak: float,
    final: float,
    total_steps: int,
    warmup_steps: int = 0,
    start: float = 0.0,
) -> optax.Schedule:
    """Linear warm-up, then half a cosine, as upstream tabulates it.

    Step `s < warmup_steps` has the s-th of `warmup_steps` evenly spaced values from `start` to
    `peak`, both included, so that the peak comes twice: the last warm-up step and the first of the
    cosine. The last step stops one short of `final`; later ones have `final`.

    Args:
      peak: rate after the warm-up.
      final: rate that the cosine tends to.
      total_steps: steps of the run, warm-up included.
      warmup_steps: upstream's `int(warmup_epochs * steps_per_epoch)`.
      start: rate of the first warm-up step.

    Returns:
      A function of the step (int or integer array, jit-able) with float32 values.

    Raises:
      ValueError: there are no steps, or not `0 <= warmup_steps <= total_steps`.
    """
    if total_steps < 1 or not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            "expected at least one step and a warm-up within the run, found"
            f" warmup_steps={warmup_steps} of total_steps={total_steps}"
        )
    cosine_steps = max(total_steps - warmup_steps, 1)

    def schedule(step: Int[Array, "*steps"]) -> Float[Array, "*steps"]:
        warmup = start + (peak - start) * jnp.minimum(step / max(warmup_steps - 1, 1), 1.0)
        remaining = jnp.clip((total_steps - step) / cosine_steps, 0.0, 1.0)
        # (1 + cos) / 2 as a squared sine, which does not cancel near the end.
        cosine = final + (peak - final) * jnp.sin(0.5 * np.pi * remaining) ** 2
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def tabulate(schedule: optax.Schedule, total_steps: int) -> Float[np.ndarray, " steps"]:
    """All values of a schedule, for plots and logs."""
    return np.asarray(schedule(jnp.arange(total_steps)))
