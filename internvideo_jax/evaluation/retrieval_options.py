"""What a measurement of retrieval looks at: the `retrieval` part of its config."""

import dataclasses
from typing import Annotated, Literal

from internvideo_jax.config import CheckedConfig, Range
from internvideo_jax.models.stage2 import Medium


@dataclasses.dataclass(frozen=True)
class RetrievalOptions(CheckedConfig):
    """What texts are compared with, and how.

    Attributes:
      medium: what texts look for: videos, sounds, or videos with their sound.
      rerank: how many of the best candidates of each query the fusion layers read; 0 for none.
      rerank_by: the scores that candidates are chosen by.
      max_text_length: tokens of a text; None is the model's own limit.
      clean_captions: whether captions go through `data.transforms.captions.clean_caption`.
      paragraphs: whether the captions of a clip are joined to one text.
      shared_captions: whether equal captions of several clips are one text, which belongs to all of
        them.
    """

    medium: Medium = "video"
    rerank: Annotated[int, Range(0, 2**20)] = 128
    rerank_by: Literal["similarity", "dsl"] = "similarity"
    max_text_length: Annotated[int, Range(3, 512)] | None = None
    clean_captions: bool = True
    paragraphs: bool = False
    shared_captions: bool = False
