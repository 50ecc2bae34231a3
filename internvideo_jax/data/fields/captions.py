"""Texts, as the annotations have them."""

from typing import Any

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.field import Columns, Field, LazyClip


class CaptionsField(Field):
    """`captions`, objects `[b]` that stay on the host.

    In training, one of the clip's captions (str), drawn anew each time; in evaluation, all of them
    (a tuple of str, empty where there is no clip).
    """

    name = "captions"

    def __init__(self, config: DataConfig):
        del config

    def train(self, clip: LazyClip, rng: np.random.Generator) -> Columns:
        captions = self._captions(clip)
        return {"captions": _objects(captions[rng.integers(len(captions))])}

    def evaluate(self, clip: LazyClip) -> Columns:
        return {"captions": _objects(self._captions(clip))}

    def blank(self) -> Columns:
        return {"captions": _objects(())}

    def _captions(self, clip: LazyClip) -> tuple[str, ...]:
        if not clip.record.captions:
            raise ValueError("expected at least one caption, found none; correct the annotation")
        return clip.record.captions


def _objects(value: Any) -> np.ndarray:
    """One object as an array, also if it is a sequence."""
    array = np.empty(1, object)
    array[0] = value
    return array
