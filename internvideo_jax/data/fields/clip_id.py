"""Which rows of a batch show the same clip."""

import hashlib

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.field import Columns, Field, LazyClip


class ClipIdField(Field):
    """`clip_id`, int32 `[b]`: equal for entries of the same part of the same file.

    It is a hash: two of 4,096 clips share it by chance once in some 500 batches.
    """

    name = "clip_id"

    def __init__(self, config: DataConfig):
        del config

    def evaluate(self, clip: LazyClip) -> Columns:
        record = clip.record
        shown = repr((record.path, record.start, record.end)).encode()
        digest = hashlib.blake2b(shown, digest_size=4).digest()
        return {"clip_id": np.frombuffer(digest, np.int32)}

    def blank(self) -> Columns:
        return {"clip_id": np.zeros(1, np.int32)}
