"""Mixup and cutmix of a batch of clips with label smoothing, as pure functions of explicit draws.

One draw serves the whole batch and each clip's partner is its mirror in the batch, which is
upstream's `batch` mode. To mix within groups of clips with a draw each (upstream's groups are what
one GPU holds), `jax.vmap` the functions over a leading group axis.

Source: `InternVideo2/single_modality/datasets/mixup.py` of upstream (after timm).
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from internvideo_jax.objectives.classification import smooth_one_hot


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """How clips are mixed; the defaults are those of upstream's fine-tuning.

    Attributes:
      mixup_alpha: parameter of mixup's Beta(a, a); 0 leaves mixup out.
      cutmix_alpha: parameter of cutmix's Beta(a, a); 0 leaves cutmix out.
      probability: chance that a batch is mixed at all.
      switch_probability: chance of cutmix instead of mixup where both are on.
      label_smoothing: s; targets are 1 - s + s/C at the label and s/C elsewhere.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    label_smoothing: float = 0.1


@flax.struct.dataclass
class MixDraw:
    """One draw, all arrays.

    Attributes:
      weight: scalar float32, share of a clip's own label and, in mixup, of its own pixels.
      box: `[4]` int32, rows [y0, y1) and columns [x0, x1) that cutmix takes from the partner; empty
        in mixup.
      use_cutmix: scalar bool.
    """

    weight: Array
    box: Array
    use_cutmix: Array


def cutmix_box(
    weight: Float[Array, ""], center: Int[Array, "2"], size: tuple[int, int]
) -> tuple[Int[Array, "4"], Float[Array, ""]]:
    """Cutmix box around a centre, and the weight corrected to the area that it leaves.

    The box has the frame's aspect and a share of `1 - weight` of its area before it is clipped.

    Args:
      weight: share to keep, in [0, 1].
      center: (y, x) inside the frame.
      size: (height, width) of the frame.

    Returns:
      Box (y0, y1, x0, x1) and `1 - area / (height * width)`.
    """
    extent = jnp.asarray(size)
    half = (extent * jnp.sqrt(1.0 - weight)).astype(jnp.int32) // 2
    low = jnp.clip(center - half, 0, extent)
    high = jnp.clip(center + half, 0, extent)
    corrected = 1.0 - jnp.prod(high - low) / (size[0] * size[1])
    return jnp.stack([low, high], axis=1).reshape(4), corrected


def draw_mix(key: PRNGKeyArray, config: MixConfig, size: tuple[int, int]) -> MixDraw:
    """Draws the mixing of one batch of frames of `size` (height, width)."""
    keys = jax.random.split(key, 5)
    if config.mixup_alpha > 0 and config.cutmix_alpha > 0:
        use_cutmix = jax.random.bernoulli(keys[0], config.switch_probability)
    else:
        use_cutmix = jnp.bool_(config.cutmix_alpha > 0)
    mixed = jax.random.bernoulli(keys[1], config.probability)
    mixed &= config.mixup_alpha > 0 or config.cutmix_alpha > 0
    # A switched-off kind's alpha is never used; Beta needs a positive one all the same.
    alpha = jnp.where(use_cutmix, config.cutmix_alpha or 1.0, config.mixup_alpha or 1.0)
    weight = jnp.where(mixed, jax.random.beta(keys[2], alpha, alpha), 1.0)
    use_cutmix &= mixed
    center = jnp.stack([jax.random.randint(keys[3 + i], (), 0, size[i]) for i in range(2)])
    box, corrected = cutmix_box(weight, center, size)
    return MixDraw(
        weight=jnp.where(use_cutmix, corrected, weight),
        box=jnp.where(use_cutmix, box, 0),
        use_cutmix=use_cutmix,
    )


def mix_video(video: Float[Array, "B T H W C"], draw: MixDraw) -> Float[Array, "B T H W C"]:
    """Mixes each clip with its mirror in the batch: a weighted mean, or a box of the partner."""
    height, width = video.shape[2:4]
    y0, y1, x0, x1 = draw.box
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
    share = jnp.where(draw.use_cutmix, 1.0 - inside, draw.weight)[..., None].astype(video.dtype)
    return video * share + video[::-1] * (1 - share)


def mix_targets(
    labels: Int[Array, " B"], draw: MixDraw, num_classes: int, label_smoothing: float
) -> Float[Array, "B C"]:
    """Smoothed targets of the clips mixed with those of their partners, float32."""
    targets = smooth_one_hot(labels, num_classes, label_smoothing)
    return targets * draw.weight + targets[::-1] * (1.0 - draw.weight)
