"""Reranking of retrieval by the fusion layers of stage 2, which read a text and a medium together.

Only the best candidates of each query are looked at. Media and texts are encoded once; a pass of
the fusion layers takes the tokens of one medium and of many texts, so that the keys and values of
the medium are computed once for all of them.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float

from internvideo_jax.data.sources.given import Clip
from internvideo_jax.evaluation.embeddings import dual_encoder, embed_clips
from internvideo_jax.evaluation.features import FailedClip
from internvideo_jax.evaluation.retrieval.metrics import Scores
from internvideo_jax.models.stage2 import Medium, Stage2
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import partition_spec, placed

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel

# Texts that a medium is fused with at once; programs are of this shape alone.
TEXTS_PER_PASS = 32


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Which pairs are worth a pass of the fusion layers.

    Attributes:
      of_texts: bool `[V, T]`, the texts that are candidates of each medium.
      of_media: bool `[T, V]`, the media that are candidates of each text.
    """

    of_texts: np.ndarray
    of_media: np.ndarray

    @property
    def pairs(self) -> np.ndarray:
        """Bool `[V, T]`: candidates in either direction, each pair once."""
        return self.of_texts | self.of_media.T

    def texts_of(self) -> dict[int, np.ndarray]:
        """Numbers of the texts of each medium that has candidates, int64."""
        pairs = self.pairs
        return {v: np.flatnonzero(pairs[v]) for v in np.flatnonzero(pairs.any(axis=1)).tolist()}


def best_candidates(scores: Scores, k: int) -> Candidates:
    """The `k` best texts of each medium, and the `k` best media of each text.

    Of equal scores, those with lower numbers are taken; more than there are count as all.

    Raises:
      ValueError: `k` below 1.
    """
    if k < 1:
        raise ValueError(f"expected at least 1 candidate of each query, found k={k}")
    return Candidates(_best(scores.of_texts, k), _best(scores.of_media, k))


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    chosen = np.zeros(scores.shape, bool)
    for row, own in enumerate(scores):
        chosen[row, np.argsort(-own, kind="stable")[:k]] = True
    return chosen


@flax.struct.dataclass
class TextTokens:
    """Encoded texts.

    Attributes:
      tokens: `[T, L, D]`, in the dtype that the model computes in.
      mask: int32 `[T, L]`, 0 at padding.
    """

    tokens: Any
    mask: Any


def match_scores(
    module: Stage2,
    variables: Any,
    medium: Medium,
    tokens_of: Callable[[int], np.ndarray],
    texts: TextTokens,
    texts_of: Mapping[int, np.ndarray],
    *,
    texts_per_pass: int = TEXTS_PER_PASS,
) -> Iterator[tuple[int, np.ndarray]]:
    """Scores pairs of media and texts by the matching head: its logit of a match.

    The media are spread over the devices of the mesh that the variables lie on, as many at a time
    as there are shards of a batch; all of them have equally many texts at once. Several processes
    call it with the same arguments.

    Args:
      module: the model.
      variables: on a device or a mesh.
      medium: which head.
      tokens_of: what gives the tokens `[M, E]` of a medium by its number; asked once for each.
      texts: all texts.
      texts_of: numbers of the texts that each medium is to be fused with.
      texts_per_pass: texts of a medium that a program takes.

    Yields:
      The number of a medium, and the scores of its texts, float32; media with the most texts first.

    Source: upstream's `tasks/retrieval_utils.py`, `evaluation_fn`.
    """
    sharding = getattr(jax.tree.leaves(variables)[0], "sharding", None)
    split, whole, ways = sharding, sharding, 1
    if isinstance(sharding, NamedSharding):
        split = NamedSharding(sharding.mesh, partition_spec(("batch",), DEFAULT_RULES))
        whole = NamedSharding(sharding.mesh, PartitionSpec())
        ways = math.prod(sharding.mesh.shape[axis] for axis in split.spec[0])
    score = functools.partial(_score, module=module, medium=medium, gathered=whole)
    texts = jax.tree.map(lambda x: placed(x, whole), texts)
    # Neighbours that have equally many texts leave the fewest gaps.
    order = sorted(texts_of, key=lambda number: -len(texts_of[number]))
    for first in range(0, len(order), ways):
        group = order[first : first + ways]
        lanes = group + group[:1] * (ways - len(group))
        tokens = placed(np.stack([tokens_of(number) for number in lanes]), split)
        longest = max(len(texts_of[number]) for number in group)
        parts = []
        for start in range(0, longest, texts_per_pass):
            rows = np.zeros((ways, texts_per_pass), np.int32)
            for lane, number in enumerate(group):
                own = texts_of[number][start : start + texts_per_pass]
                rows[lane, : len(own)] = own
            parts.append(score(variables, tokens, texts, placed(rows, split)))
        scores = np.concatenate(jax.device_get(parts), axis=1)
        for lane, number in enumerate(group):
            yield number, scores[lane, : len(texts_of[number])]


@functools.partial(jax.jit, static_argnames=("module", "medium", "gathered"))
def _score(
    variables: Any,
    media: jax.Array,
    texts: TextTokens,
    rows: jax.Array,
    *,
    module: Stage2,
    medium: Medium,
    gathered: Any,
) -> jax.Array:
    """Match logits `[G, P]` float32 of media `[G, M, E]`, each with the texts of its rows `[G, P]`;
    on all devices."""

    def of_pair(tokens: jax.Array, mask: jax.Array, media: jax.Array) -> jax.Array:
        fused = module.apply(variables, tokens[None], mask[None], media[None], method="fuse")
        logits: Any = module.apply(variables, fused, medium, method="match_logits")
        return logits[0, 1]

    # What depends on the medium alone stays out of the inner map: it is computed once. The devices
    # share the media, whatever the models' own constraints on batches.
    of_medium = jax.vmap(of_pair, in_axes=(0, 0, None))
    with nn.logical_axis_rules(()):
        scores = jax.vmap(of_medium)(texts.tokens[rows], texts.mask[rows], media)
    if isinstance(gathered, NamedSharding):
        scores = jax.lax.with_sharding_constraint(scores, gathered)
    return scores.astype(jnp.float32)


def match_clips(
    clips: Sequence[Clip],
    texts: TextTokens,
    pairs: Bool[np.ndarray, "V T"],
    model: "SavedModel",
    *,
    num_frames: int | None = None,
    batch_size: int = 8,
) -> Iterator[Float[np.ndarray, " T"] | FailedClip]:
    """Scores pairs of clips and texts by the fusion layers; a clip of no pair is not read.

    Args:
      clips: V of them, as `embed_clips` takes them.
      texts: encoded ones.
      pairs: which pairs are looked at.
      model: a saved model that matches clips with texts.
      num_frames: frames per clip, if not as many as the model was made for.
      batch_size: clips that are held together at most.

    Yields:
      The scores of each clip with the texts, in their order: logits of a match, -inf where the pair
      was not looked at, float32; or why there are none.

    Raises:
      ValueError: as `embed_clips`.
    """
    module: Any = dual_encoder(model)
    dtype = jnp.dtype(module.config.text.dtype)
    texts = TextTokens(texts.tokens.astype(dtype), texts.mask)
    wanted = np.flatnonzero(pairs.any(axis=1)).tolist()
    encoded = embed_clips(
        [clips[number] for number in wanted],
        model,
        num_frames=num_frames,
        has_tokens=True,
        batch_size=batch_size,
    )
    nothing = np.full(pairs.shape[1], -np.inf, np.float32)
    done = 0
    while group := list(itertools.islice(encoded, batch_size)):
        numbers, wanted = wanted[: len(group)], wanted[len(group) :]
        rows: dict[int, np.ndarray | FailedClip] = {}
        tokens = {}
        for number, clip in zip(numbers, group, strict=True):
            if isinstance(clip, FailedClip):
                rows[number] = clip
            else:
                rows[number] = nothing.copy()
                tokens[number] = clip.tokens.astype(dtype)
        texts_of = {number: np.flatnonzero(pairs[number]) for number in tokens}
        for number, scores in match_scores(
            module, model.variables, "video", tokens.__getitem__, texts, texts_of
        ):
            row = rows[number]
            assert isinstance(row, np.ndarray)
            row[texts_of[number]] = scores
        for number in range(done, numbers[-1] + 1):
            yield rows.get(number, nothing.copy())
        done = numbers[-1] + 1
    for _ in range(done, len(clips)):
        yield nothing.copy()


def reranked(scores: np.ndarray, candidates: Candidates) -> Scores:
    """Scores `[V, T]` of pairs as those of each direction's own candidates; -inf of all others."""
    return Scores(
        np.where(candidates.of_texts, scores, -np.inf),
        np.where(candidates.of_media, scores.T, -np.inf),
    )
