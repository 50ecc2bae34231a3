"""Masked language modelling: which words are masked, and the loss of guessing them.

Source: upstream `MLMLoss` in `InternVideo2/multi_modality/models/criterions.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

# Positions with this label do not count.
IGNORED = -100


class Vocabulary(NamedTuple):
    """What masking knows of a vocabulary.

    Attributes:
      size: number of words.
      pad_id: padding, which is never masked.
      cls_id: the first token, likewise.
      mask_id: the mask.
    """

    size: int
    pad_id: int
    cls_id: int
    mask_id: int


BERT_VOCABULARY = Vocabulary(size=30_522, pad_id=0, cls_id=101, mask_id=103)


class WordMasks(NamedTuple):
    """All the randomness of masked texts, `[B, N]` each.

    Attributes:
      chosen: positions to guess; padding and the first token are left out later.
      is_masked: of these, those that show the mask.
      is_random: of the others, those that show another word; the rest show their own.
      words: the other words.
    """

    chosen: Bool[Array, "B N"]
    is_masked: Bool[Array, "B N"]
    is_random: Bool[Array, "B N"]
    words: Int[Array, "B N"]


def draw_word_masks(
    key: PRNGKeyArray, shape: tuple[int, ...], vocab_size: int, probability: float = 0.5
) -> WordMasks:
    """Draws which words of texts `[B, N]` are to be guessed: each one with `probability`.

    Of these, 80 % show the mask, 10 % a random word of the vocabulary, 10 % themselves.
    """
    keys = jax.random.split(key, 4)
    chances = (probability, 0.8, 0.5)
    chosen, is_masked, is_random = (
        jax.random.bernoulli(key, chance, shape)
        for key, chance in zip(keys[:3], chances, strict=True)
    )
    return WordMasks(
        chosen, is_masked, is_random, jax.random.randint(keys[3], shape, 0, vocab_size)
    )


def mask_words(
    ids: Int[Array, "B N"], masks: WordMasks, vocabulary: Vocabulary
) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
    """Texts with masked words, and the labels of these, `IGNORED` elsewhere.

    Args:
      ids: the texts.
      masks: see `draw_word_masks`.
      vocabulary: its special words.
    """
    chosen = masks.chosen & (ids != vocabulary.pad_id) & (ids != vocabulary.cls_id)
    labels = jnp.where(chosen, ids, IGNORED)
    shown = jnp.where(masks.is_random, masks.words, ids)
    shown = jnp.where(masks.is_masked, vocabulary.mask_id, shown)
    return jnp.where(chosen, shown, ids), labels


def masked_lm_loss(logits: Float[Array, "B N V"], labels: Int[Array, "B N"]) -> Float[Array, ""]:
    """Mean cross-entropy over the positions whose label is not `IGNORED`, in float32.

    Without any such position the loss is 0; upstream's is NaN.
    """
    counts = labels != IGNORED
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    index = jnp.where(counts, labels, 0)[..., None]
    chosen = jnp.take_along_axis(log_probabilities, index, axis=-1)[..., 0]
    return -jnp.sum(jnp.where(counts, chosen, 0.0)) / jnp.maximum(jnp.sum(counts), 1)
