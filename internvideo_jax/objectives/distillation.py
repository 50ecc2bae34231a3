"""Alignment of a masked student with the features of frozen teachers (stage 1 and distillation).

Source: upstream `InternVideo2/single_modality/engines/engine_for_pretraining.py` and
`engine_for_distill.py`. Teacher features are unit vectors (`nn.normalization.l2_normalize`); so are
the student's, its decoders end with the same function.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def alignment_loss(
    student: Float[Array, "*rows D"], target: Float[Array, "*rows D"]
) -> Float[Array, ""]:
    """Mean over all rows of `2 - 2 <student, target>`: the squared distance of unit vectors.

    Args:
      student: unit vectors `[..., D]`, any floating dtype.
      target: unit vectors of the same shape; no gradient flows into them.

    Returns:
      Scalar in [0, 4], float32.

    Raises:
      ValueError: the shapes differ.
    """
    if student.shape != target.shape:
        raise ValueError(
            f"expected student and target features of one shape, found {student.shape} and"
            f" {target.shape}; take the target rows that the student kept"
        )
    target = jax.lax.stop_gradient(target)
    product = student.astype(jnp.float32) * target.astype(jnp.float32)
    return 2.0 - 2.0 * jnp.mean(jnp.sum(product, axis=-1))


def distillation_loss(
    student: Mapping[str, Array],
    targets: Mapping[str, Array],
    ratios: Mapping[str, float],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum of the alignment losses of all terms with a positive ratio.

    Stage 1 has the terms `clip_middle` `[K, B, R, D]`, `clip_final` `[B, D]` and `mae`
    `[K, B, R - 1, D]`; distillation the first two. A student without final decoder leaves
    `clip_final` out of `ratios`.

    Args:
      student: unit-length student features by term; may hold terms that `ratios` does not.
      targets: unit-length teacher features at the student's kept rows, by term.
      ratios: weight of each term; terms at 0 or below are not computed.

    Returns:
      The loss, and the unweighted loss of each computed term under its name.

    Raises:
      ValueError: a weighted term is missing in `student` or `targets`, or no term is weighted.
    """
    terms = {name: ratio for name, ratio in ratios.items() if ratio > 0}
    missing = sorted(set(terms) - (set(student) & set(targets)))
    if missing or not terms:
        raise ValueError(
            f"expected student and target features for the weighted terms {sorted(terms)}, found"
            f" student {sorted(student)} and targets {sorted(targets)};"
            f" set the ratio of {missing or 'at least one term'} accordingly"
        )
    losses = {name: alignment_loss(student[name], targets[name]) for name in terms}
    total = jnp.float32(0.0)
    for name, ratio in terms.items():
        total = total + ratio * losses[name]
    return total, losses
