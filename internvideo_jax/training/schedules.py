"""Learning-rate schedules of the released recipes.

Source: `cosine_scheduler` of upstream `InternVideo2/single_modality/utils.py` and
`InternVideo2/multi_modality/utils/scheduler.py`.
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
    """
    cosine_steps = max(total_steps - warmup_steps, 1)

    def schedule(step: Int[Array, "*steps"]) -> Float[Array, "*steps"]:
        warmup = start + (peak - start) * jnp.minimum(step / max(warmup_steps - 1, 1), 1.0)
        remaining = jnp.clip((total_steps - step) / cosine_steps, 0.0, 1.0)
        # (1 + cos) / 2 as a squared sine, which does not cancel near the end.
        cosine = final + (peak - final) * jnp.sin(0.5 * np.pi * remaining) ** 2
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def floored_cosine(
    peak: float, floor: float, total_steps: float, warmup_steps: float = 0
) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine to 0, and nowhere less than `floor`: of stage 2.

    Args:
      peak: rate after the warm-up.
      floor: the least rate.
      total_steps: steps of the run, warm-up included.
      warmup_steps: steps of the warm-up.

    Returns:
      As of `warmup_cosine`.
    """

    def schedule(step: Int[Array, "*steps"]) -> Float[Array, "*steps"]:
        warmup = step / max(warmup_steps, 1e-6)
        done = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1e-6), 0.0, 1.0)
        cosine = jnp.sin(0.5 * np.pi * (1 - done)) ** 2
        return jnp.maximum(floor, peak * jnp.where(step < warmup_steps, warmup, cosine))

    return schedule
