"""Contrast of two media over the global batch, with as many positives as examples share an id.

Source: upstream `VTC_VTM_Loss` in `InternVideo2/multi_modality/models/criterions.py`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from internvideo_jax.nn.normalization import l2_normalize
from internvideo_jax.nn.postnorm_block import scale_gradient
from internvideo_jax.parallel.sharding import Split, shard_map_logical, splits

# Candidates whose similarities to a device's rows are alive at a time.
CHUNK = 1024


def contrastive_loss(
    left: Float[Array, "B *T C"],
    right: Float[Array, "B *T C"],
    temperature: Float[Array, ""],
    ids: Int[Array, " B"],
    *,
    gradient_scale: float = 1.0,
) -> Float[Array, ""]:
    """Mean of both directions' cross-entropies of cosines over the temperature.

    The targets of an example are spread evenly over those of its id, itself among them. Each device
    of a mesh compares its rows with all of the batch, some at a time, forwards and backwards: the
    similarities of all pairs are nowhere together.

    Args:
      left: embeddings of one medium, of any length. Of several vectors for an example the cosines
        are averaged.
      right: those of the other one.
      temperature: what cosines are divided by.
      ids: equal for examples that are positives of each other.
      gradient_scale: factor on the gradients of `left` and `right`, not on the temperature's. 1 is
        the gradient of the loss. Upstream's gathering over W GPUs amounts to 1/W.

    Returns:
      Scalar, float32 (float64 where the embeddings are).
    """
    left, right = (scale_gradient(unit_vectors(x), gradient_scale) for x in (left, right))
    (batch,) = splits(("batch",))

    def rows(queries: Array, candidates: Array, ids: Array, temperature: Array) -> Array:
        return _row_losses(queries, candidates, ids, temperature, batch)

    embedding = ("batch", None)
    losses = shard_map_logical(rows, (embedding, embedding, ("batch",), ()), ("batch",))
    forwards = losses(left, right, ids, temperature)
    backwards = losses(right, left, ids, temperature)
    return 0.5 * jnp.mean(forwards + backwards)


def unit_vectors(embedding: Float[Array, "B *T C"]) -> Float[Array, "B C"]:
    """Vectors whose products are cosines of embeddings, or means of them over the axis T."""
    units = l2_normalize(embedding)
    return units.mean(axis=1) if units.ndim == 3 else units


def similarities(
    queries: Float[Array, "*G I C"],
    candidates: Float[Array, "*G J C"],
    temperature: Float[Array, ""],
) -> Float[Array, "*G I J"]:
    """Products of unit vectors over the temperature, in full precision on any device."""
    products = jnp.einsum("...ic,...jc->...ij", queries, candidates, precision="highest")
    return products / temperature


def _row_losses(
    queries: Float[Array, "I C"],
    candidates: Float[Array, "I C"],
    ids: Int[Array, " I"],
    temperature: Float[Array, ""],
    batch: Split,
) -> Float[Array, " I"]:
    """Cross-entropies of a device's queries among the candidates of all devices."""
    all_ids = ids
    if batch.parts > 1:
        candidates, all_ids = (
            jax.lax.all_gather(x, batch.mesh_axes, tiled=True) for x in (candidates, ids)
        )

    @jax.checkpoint
    def summary(chunk: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        candidates, candidate_ids, is_real = chunk
        logits = similarities(queries, candidates, temperature)
        logits = jnp.where(is_real, logits, -jnp.inf)
        is_positive = same_ids(ids, candidate_ids) & is_real
        positives = jnp.where(is_positive, logits, 0.0)
        return jax.nn.logsumexp(logits, axis=1), positives.sum(1), is_positive.sum(1)

    size = min(CHUNK, len(candidates))
    chunks = tuple(chunked(x, size) for x in (candidates, all_ids, jnp.ones_like(all_ids, bool)))
    normalizers, positives, counts = jax.lax.map(summary, chunks)
    return jax.nn.logsumexp(normalizers, axis=0) - positives.sum(0) / counts.sum(0)


def same_ids(left: Int[Array, "*G I"], right: Int[Array, "*G J"]) -> Bool[Array, "*G I J"]:
    """Which pairs are of one id."""
    return left[..., :, None] == right[..., None, :]


def chunked(x: Array, size: int) -> Array:
    """`[J, ...]` as `[chunks, size, ...]`, lengthened by zeros."""
    padding = [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(-1, size, *x.shape[1:])
