"""All losses of stage 2: contrast, matching and masked words, of texts with every medium.

Source: `forward` of upstream `models/internvideo2_stage2_visual.py` and
`internvideo2_stage2_audiovisual.py` in `InternVideo2/multi_modality`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal, get_args

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from internvideo_jax.models.stage2 import MediaOutput, Medium, Stage2, TextOutput
from internvideo_jax.objectives.contrastive import contrastive_loss
from internvideo_jax.objectives.masked_lm import (
    BERT_VOCABULARY,
    Vocabulary,
    WordMasks,
    draw_word_masks,
    mask_words,
    masked_lm_loss,
)
from internvideo_jax.objectives.matching import (
    Negatives,
    draw_negatives,
    matching_loss,
    take_of_group,
    triples,
)

# Contrasts, matchings and masked words of texts with each medium; "avc" contrasts sound and clip.
Term = Literal["vtc", "atc", "avc", "avtc", "vtm", "atm", "avtm", "mlm", "amlm", "avmlm"]

# What texts are compared or fused with for each; "avc" compares no texts.
MEDIA_OF: dict[Term, Medium] = {
    "vtc": "video",
    "vtm": "video",
    "mlm": "video",
    "atc": "audio",
    "atm": "audio",
    "amlm": "audio",
    "avtc": "audio_video",
    "avtm": "audio_video",
    "avmlm": "audio_video",
}


@dataclasses.dataclass(frozen=True)
class CrossModalOptions:
    """How the losses are computed.

    Attributes:
      match_group: neighbouring examples among which negatives are drawn, which must divide the
        batch; None: all of it.
      mask_probability: share of the words that are to be guessed.
      contrastive_gradient_scale: see `contrastive.contrastive_loss`.
      vocabulary: of the texts.
    """

    match_group: int | None = 64
    mask_probability: float = 0.5
    contrastive_gradient_scale: float = 1.0
    vocabulary: Vocabulary = BERT_VOCABULARY


@dataclasses.dataclass(frozen=True)
class Draws:
    """The randomness of the losses: from a key, but for terms whose draws are given.

    Attributes:
      key: of the others.
      negatives: by matching term.
      word_masks: by term of masked words.
    """

    key: PRNGKeyArray
    negatives: Mapping[str, Negatives] = dataclasses.field(default_factory=dict)
    word_masks: Mapping[str, WordMasks] = dataclasses.field(default_factory=dict)


def cross_modal_losses(
    model: Stage2,
    media: Mapping[Medium, MediaOutput],
    texts: Mapping[str, tuple[Int[Array, "B L"], Int[Array, "B L"]]],
    ids: Int[Array, " B"],
    captions: Mapping[Term, str],
    draws: Draws,
    options: CrossModalOptions,
    *,
    deterministic: bool = True,
) -> dict[Term, Float[Array, ""]]:
    """The losses of a batch, unweighted, each a float32 scalar.

    Each caption is encoded once for the contrasts and matchings, and once more, with masked words,
    for each term of these. Call it inside a model: `module.apply(variables, ..., method=...)`.

    Args:
      model: bound to its variables.
      media: what the model made of the batch's clips ("video") and sounds ("audio").
      texts: ids and masks of the captions by name.
      ids: examples of one id are positives of each other, and no negatives.
      captions: which losses are wanted, and the caption of each; that of "avc" does not matter.
        Losses of media that the batch does not have are left out.
      draws: hard negatives and masked words.
      options: see there.
      deterministic: False turns dropout on (needs the `dropout` RNG).

    Raises:
      ValueError: a term is unknown, or a caption or a head that it needs is missing.
    """
    known = get_args(Term)
    unknown = [term for term in captions if term not in known]
    absent = sorted({name for t, name in captions.items() if t != "avc"} - texts.keys())
    if unknown or absent:
        raise ValueError(
            f"expected terms among {', '.join(known)} with captions among {', '.join(texts)}, found"
            f" {', '.join([*unknown, *absent])}"
        )
    media = dict(media)
    wanted = {MEDIA_OF[term] for term in captions if term in MEDIA_OF}
    if "audio_video" in wanted and {"video", "audio"} <= media.keys():
        media["audio_video"] = model.join(media["video"], media["audio"])
    group = options.match_group
    temperature = model.bounded_temperature()
    contrast = functools.partial(
        contrastive_loss,
        temperature=temperature,
        ids=ids,
        gradient_scale=options.contrastive_gradient_scale,
    )
    encode = functools.partial(model.encode_text, deterministic=deterministic)
    fuse = functools.partial(model.fuse, deterministic=deterministic)
    encoded: dict[str, TextOutput] = {}

    def text_of(term: Term) -> TextOutput:
        name = captions[term]
        if name not in encoded:
            encoded[name] = encode(*texts[name])
        return encoded[name]

    def match(term: Term, key: PRNGKeyArray) -> Array:
        medium, text = media[MEDIA_OF[term]], text_of(term)
        negatives = draws.negatives.get(term)
        if negatives is None:
            negatives = draw_negatives(
                key, medium.embedding, text.embedding, temperature, ids, group
            )
        fused = fuse(*_matching_pairs(text, medium, negatives, group))
        return matching_loss(model.match_logits(fused, MEDIA_OF[term]), negatives.is_valid)

    def guess(term: Term, key: PRNGKeyArray) -> Array:
        shown, mask = texts[captions[term]]
        masks = draws.word_masks.get(term)
        if masks is None:
            size, share = options.vocabulary.size, options.mask_probability
            masks = draw_word_masks(key, shown.shape, size, share)
        shown, labels = mask_words(shown, masks, options.vocabulary)
        fused = fuse(encode(shown, mask).tokens, mask, media[MEDIA_OF[term]].tokens)
        return masked_lm_loss(model.mlm_logits(fused), labels)

    losses: dict[Term, Array] = {}
    for number, term in enumerate(known):
        key = jax.random.fold_in(draws.key, number)
        if term not in captions:
            continue
        if term == "avc":
            if {"video", "audio"} <= media.keys():
                losses[term] = contrast(media["audio"].embedding, media["video"].embedding)
        elif MEDIA_OF[term] in media:
            if term.endswith("tc"):
                embedding = media[MEDIA_OF[term]].embedding
                losses[term] = contrast(embedding, text_of(term).embedding)
            elif term.endswith("tm"):
                losses[term] = match(term, key)
            else:
                losses[term] = guess(term, key)
    return losses


def _matching_pairs(
    text: TextOutput, medium: MediaOutput, negatives: Negatives, group: int | None
) -> tuple[Array, Array, Array]:
    """What is fused for matching: of each example its own, another medium, another text.

    Returns:
      Texts `[3 B, L, D]`, their masks `[3 B, L]`, media `[3 B, M, E]`.
    """
    other_text, other_mask = (
        take_of_group(x, negatives.text, group) for x in (text.tokens, text.mask)
    )
    other_medium = take_of_group(medium.tokens, negatives.media, group)
    return (
        triples(text.tokens, text.tokens, other_text),
        triples(text.mask, text.mask, other_mask),
        triples(medium.tokens, other_medium, medium.tokens),
    )
