"""Matching of texts with media: hard negatives, the pairs that are fused, and their loss.

Negatives are drawn among the `group` neighbouring examples of the global batch that an example is
one of, as upstream draws them among those of one GPU. A group may lie on several devices, which
then exchange its rows and no others. Without a group they are drawn from the whole batch, and only
the chosen rows travel.

Source: upstream `VTC_VTM_Loss.vtm_loss` in `InternVideo2/multi_modality/models/criterions.py`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from internvideo_jax.objectives.contrastive import (
    CHUNK,
    chunked,
    same_ids,
    similarities,
    unit_vectors,
)
from internvideo_jax.parallel.rows import take_rows
from internvideo_jax.parallel.sharding import Split, shard_map_logical, splits


class Negatives(NamedTuple):
    """What does not match, for each example.

    Attributes:
      media: row of the batch whose medium goes with the example's text, int32 `[B]`.
      text: row whose text goes with its medium, int32 `[B]`.
      is_valid: whether the example's group has another id at all; without, the rows mean nothing.
    """

    media: Int[Array, " B"]
    text: Int[Array, " B"]
    is_valid: Bool[Array, " B"]


def draw_negatives(
    key: PRNGKeyArray,
    media: Float[Array, "B *T C"],
    text: Float[Array, "B *T C"],
    temperature: Float[Array, ""],
    ids: Int[Array, " B"],
    group: int | None,
) -> Negatives:
    """Draws negatives in proportion to the softmax of their similarities; the same on any mesh.

    Args:
      key: for the draws.
      media: embeddings of the media, of any length.
      text: those of the texts.
      temperature: what cosines are divided by.
      ids: examples of one id are no negatives of each other.
      group: neighbouring examples among which negatives are drawn; must divide B. None: all.

    Raises:
      ValueError: groups and devices do not divide.
    """
    media_key, text_key = jax.random.split(key)

    def draw(key: PRNGKeyArray, queries: Array, candidates: Array) -> Array:
        if group is None:
            return _draw_of_all(key, queries, candidates, temperature, ids)
        weights = negative_log_weights(queries, candidates, temperature, ids, group)
        # Gumbel noise turns the largest into a draw.
        chosen = jnp.argmax(weights + jax.random.gumbel(key, weights.shape), axis=1)
        return (_first_rows(len(ids), group) + chosen).astype(jnp.int32)

    return Negatives(
        draw(media_key, text, media), draw(text_key, media, text), valid_negatives(ids, group)
    )


def _draw_of_all(
    key: PRNGKeyArray, queries: Array, candidates: Array, temperature: Array, ids: Array
) -> Int[Array, " B"]:
    """The row of each query's negative, of the whole batch; without any, the query's own.

    Each device goes through the candidates of all devices, some at a time.
    """
    (batch,) = splits(("batch",))

    def draw(
        queries: Array, candidates: Array, ids: Array, temperature: Array, key: PRNGKeyArray
    ) -> Array:
        rows = batch.index() * len(queries) + jnp.arange(len(queries), dtype=jnp.int32)
        # Draws of its own for each row, so that they do not depend on the mesh.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
        all_ids = ids
        if batch.parts > 1:
            candidates, all_ids = (
                jax.lax.all_gather(x, batch.mesh_axes, tiled=True) for x in (candidates, ids)
            )
        size = min(CHUNK, len(candidates))
        is_real = jnp.ones_like(all_ids, bool)
        chunks = tuple(chunked(x, size) for x in (candidates, all_ids, is_real))

        def look(best: tuple[Array, Array], chunk: Any) -> tuple[tuple[Array, Array], None]:
            number, (candidates, candidate_ids, is_real) = chunk
            logits = similarities(queries, candidates, temperature)
            is_negative = ~same_ids(ids, candidate_ids) & is_real
            noise = jax.vmap(
                lambda key: jax.random.gumbel(jax.random.fold_in(key, number), (size,))
            )(keys)
            logits = jnp.where(is_negative, logits + noise, -jnp.inf)
            value, index = logits.max(1), size * number + logits.argmax(1).astype(jnp.int32)
            is_better = value > best[0]
            return (
                jnp.where(is_better, value, best[0]),
                jnp.where(is_better, index, best[1]),
            ), None

        start = jnp.full(len(rows), -jnp.inf, queries.dtype), rows
        numbers = jnp.arange(len(chunks[0]), dtype=jnp.int32)
        return jax.lax.scan(look, start, (numbers, chunks))[0][1]

    embedding = ("batch", None)
    run = shard_map_logical(draw, (embedding, embedding, ("batch",), (), ()), ("batch",))
    units = unit_vectors(queries), unit_vectors(candidates)
    return run(*jax.lax.stop_gradient((*units, ids, temperature)), key)


def valid_negatives(ids: Int[Array, " B"], group: int | None) -> Bool[Array, " B"]:
    """Which examples have a negative in their group, or None, in the batch."""
    group = group or len(ids)
    grouped = ids.reshape(-1, group)
    return (grouped.max(1, keepdims=True) != grouped.min(1, keepdims=True)).repeat(group, 1).ravel()


def negative_log_weights(
    queries: Float[Array, "B *T C"],
    candidates: Float[Array, "B *T C"],
    temperature: Float[Array, ""],
    ids: Int[Array, " B"],
    group: int,
) -> Float[Array, "B G"]:
    """Log-softmax of each query's similarities in its group, negative infinity at its own id.

    No gradient flows. In logarithms no negative's weight is lost beside a positive's.

    Args:
      queries: embeddings, of any length.
      candidates: those to choose from.
      temperature: what cosines are divided by.
      ids: examples of one id are no negatives of each other.
      group: size G of a group; must divide B.

    Raises:
      ValueError: groups and devices do not divide.
    """
    batch = _batch_split(len(ids), group)

    def weights(queries: Array, candidates: Array, ids: Array, temperature: Array) -> Array:
        candidates, candidate_ids = (_grouped(x, group, batch) for x in (candidates, ids))
        groups = len(candidates)
        queries, ids = (x.reshape(groups, -1, *x.shape[1:]) for x in (queries, ids))
        logits = jax.nn.log_softmax(similarities(queries, candidates, temperature))
        logits = jnp.where(same_ids(ids, candidate_ids), -jnp.inf, logits)
        return logits.reshape(-1, group)

    embedding = ("batch", None)
    run = shard_map_logical(weights, (embedding, embedding, ("batch",), ()), embedding)
    units = unit_vectors(queries), unit_vectors(candidates)
    return jax.lax.stop_gradient(run(*units, ids, temperature))


def check_groups(size: int, group: int, devices: int) -> None:
    """Checks that the groups of negatives suit a batch.

    Args:
      size: examples of the batch.
      group: those of a group.
      devices: that share the batch.

    Raises:
      ValueError: groups and devices do not divide.
    """
    rows = size // devices
    if group < 1 or size % group or (rows % group and group % rows):
        raise ValueError(
            f"expected a match_group that divides the batch of {size} examples and, of the"
            f" {rows} on each of {devices} devices, is a part or a multiple; found {group}"
        )


def take_of_group(
    x: Float[Array, "B ..."], rows: Int[Array, " B"], group: int | None
) -> Float[Array, "B ..."]:
    """Rows of `x`, each from the group of the place that it goes to.

    Args:
      x: one row for each example.
      rows: numbers of rows of the batch.
      group: size of the groups; None: they come from anywhere.

    Raises:
      ValueError: groups and devices do not divide.
    """
    axes = ("batch", *[None] * (x.ndim - 1))
    if group is None:
        (batch,) = splits(("batch",))
        take_any = functools.partial(take_rows, split=batch)
        return shard_map_logical(take_any, (axes, ("batch",)), axes)(x, rows)
    batch = _batch_split(len(rows), group)

    def take(x: Array, chosen: Array) -> Array:
        candidates = _grouped(x, group, batch)
        chosen = chosen.reshape(len(candidates), -1)
        taken = jax.vmap(lambda x, chosen: x[chosen])(candidates, chosen)
        return taken.reshape(x.shape)

    chosen = rows - _first_rows(len(rows), group)
    return shard_map_logical(take, (axes, ("batch",)), axes)(x, chosen)


def triples(own: Float[Array, "B ..."], *others: Float[Array, "B ..."]) -> Array:
    """One row for each pair of an example, `[n B, ...]`, those of an example side by side.

    So they stay on the example's device.
    """
    return jnp.stack([own, *others], axis=1).reshape(-1, *own.shape[1:])


def matching_loss(logits: Float[Array, "3B 2"], is_valid: Bool[Array, " B"]) -> Float[Array, ""]:
    """Mean cross-entropy of pairs, of which the first of each example's three match, in float32.

    Args:
      logits: of a mismatch and of a match, for each example: of its medium and text, of its text
        with another medium, of its medium with another text.
      is_valid: examples whose other two count.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(-1, 3, 2)
    matching = log_probabilities[:, 0, 1]
    others = log_probabilities[:, 1:, 0].sum(1)
    total = matching.sum() + jnp.where(is_valid, others, 0.0).sum()
    return -total / (len(is_valid) + 2 * is_valid.sum())


def _first_rows(size: int, group: int) -> Int[Array, " B"]:
    """The row at which the group of each example begins."""
    rows = jnp.arange(size)
    return rows - rows % group


def _batch_split(size: int, group: int) -> Split:
    """How the batch is cut, if that suits its groups."""
    (batch,) = splits(("batch",))
    check_groups(size, group, batch.parts)
    return batch


def _grouped(x: Array, group: int, batch: Split) -> Array:
    """The groups of a device's rows `[b, ...]`, as `[groups, group, ...]`."""
    rows = len(x)
    if rows % group == 0:
        return x.reshape(-1, group, *x.shape[1:])
    members = group // rows
    teams = [list(range(first, first + members)) for first in range(0, batch.parts, members)]
    return jax.lax.all_gather(x, batch.mesh_axes, axis_index_groups=teams, tiled=True)[None]
