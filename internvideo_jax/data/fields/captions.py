"""Texts, as the annotations have them."""

from typing import Any

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.field import Columns, Draws, Field, LazyClip


class CaptionsField(Field):
    """`captions`, objects `[b]` that stay on the host.

    In training, one of the clip's captions (str), drawn anew each time; in evaluation, all of them
    (a tuple of str, empty where there is no clip).
    """

    name = "captions"

    def __init__(self, config: DataConfig):
        del config

    def train(self, clip: LazyClip, draws: Draws) -> Columns:
        return {"captions": _objects(drawn_caption(clip, draws))}

    def evaluate(self, clip: LazyClip) -> Columns:
        return {"captions": _objects(captions_of(clip))}

    def blank(self) -> Columns:
        return {"captions": _objects(())}


def captions_of(clip: LazyClip) -> tuple[str, ...]:
    """All captions of a clip.

    Raises:
      ValueError: it has none.
    """
    if not clip.record.captions:
        raise ValueError("expected at least one caption, found none; correct the annotation")
    return clip.record.captions


def drawn_caption(clip: LazyClip, draws: Draws | None, name: str = "") -> str:
    """One of a clip's captions of some name at random, or without draws the first.

    Raises:
      ValueError: it has none.
    """
    if not (captions := clip.record.captions_named(name)):
        named = f" called {name!r}" if name else ""
        known = ", ".join(map(repr, dict.fromkeys(clip.record.caption_names))) or "without names"
        raise ValueError(
            f"expected at least one caption{named}, found {len(clip.record.captions)} ({known});"
            " correct the annotation"
        )
    return captions[0 if draws is None else draws().integers(len(captions))]


def _objects(value: Any) -> np.ndarray:
    """One object as an array, also if it is a sequence."""
    array = np.empty(1, object)
    array[0] = value
    return array
