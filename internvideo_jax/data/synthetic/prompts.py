"""Names of the demo world's motions and looks, and captions in which such a name has its place.

As captions say everything of a clip, a template says something of all but the class: every motion's
templates have each look once, every look's each motion in each sentence that names looks in one
piece. Backgrounds, voices and sentences alternate.
"""

from itertools import cycle, product

from internvideo_jax.data.synthetic.scenes import COLORS
from internvideo_jax.data.synthetic.world import (
    BACKGROUNDS,
    MOTIONS,
    SHAPES,
    SIZES,
    TEMPLATES,
    VERBS,
    VOICES,
)

# How captions name a look.
_LOOK = "{size} {color} {shape}"


def motion_names() -> tuple[str, ...]:
    """What captions call the motions, in the order of `world.MOTIONS`."""
    return tuple(VERBS[motion] for motion in MOTIONS)


def look_names() -> tuple[str, ...]:
    """What captions call the looks, by `Content.look`."""
    return tuple(
        _LOOK.format(size=size, color=color, shape=shape)
        for color, shape, size in product(COLORS, SHAPES, SIZES)
    )


def motion_templates() -> tuple[str, ...]:
    """Captions in which the motion is "{}"."""
    looks = product(COLORS, SHAPES, SIZES)
    others = cycle(product(TEMPLATES, BACKGROUNDS, VOICES))
    return tuple(
        template.format(
            size=size, color=color, shape=shape, verb="{}", background=background, voice=voice
        )
        for (color, shape, size), (template, background, voice) in zip(looks, others, strict=False)
    )


def look_templates() -> tuple[str, ...]:
    """Captions in which the look is "{}"."""
    sentences = [text.replace(_LOOK, "{look}") for text in TEMPLATES if _LOOK in text]
    others = cycle(product(BACKGROUNDS, VOICES))
    return tuple(
        sentence.format(look="{}", verb=verb, background=background, voice=voice)
        for (sentence, verb), (background, voice) in zip(
            product(sentences, motion_names()), others, strict=False
        )
    )
