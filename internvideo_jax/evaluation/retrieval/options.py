"""A measurement of retrieval: the parts `retrieval` and `eval_data` of its config."""

import dataclasses
from typing import Annotated, Literal

from internvideo_jax.config import CheckedConfig, Frames, Range
from internvideo_jax.models.dual_encoder import Medium

# Candidates of each query that are reranked, where a model can: as of the published numbers.
NUM_CANDIDATES = 128


@dataclasses.dataclass(frozen=True)
class RetrievalOptions(CheckedConfig):
    """What texts are compared with, and how.

    Attributes:
      medium: what texts look for: videos, sounds, or videos with their sound.
      rerank: how many of the best candidates of each query the fusion layers read; 0 for none. None
        is 128 of models that have such layers, and none of others.
      rerank_by: the scores that candidates are chosen by.
      max_text_length: tokens of a text of stage 2; None is the model's own limit, as it is of CLIP
        models in any case.
      clean_captions: whether captions go through `data.transforms.captions.clean_caption`.
      paragraphs: whether the captions of a clip are joined to one text.
      shared_captions: whether equal captions of several clips are one text, which belongs to all of
        them.
    """

    medium: Medium = "video"
    rerank: Annotated[int, Range(0, 2**20)] | None = None
    rerank_by: Literal["similarity", "dsl"] = "similarity"
    max_text_length: Annotated[int, Range(3, 2**16)] | None = None
    clean_captions: bool = True
    paragraphs: bool = False
    shared_captions: bool = False


@dataclasses.dataclass(frozen=True)
class RetrievalData(CheckedConfig):
    """Which clips, and what is shown of them; all else follows from the model.

    Attributes:
      annotations: a list that `data.annotations.retrieval.read_retrieval` reads.
      root: folder of the videos; None is that of the list.
      videos: a list of the videos to take from it; None takes all.
      caption: which of the captions of jsonl count, by their name; None takes all.
      max_seconds: how much of each video is shown, from its beginning; None is all.
      num_frames: frames of a view; None is as many as the model was made for.
      segments: views of a clip, whose tokens and embeddings are averaged.
      missing_audio: whether clips without sound are errors, or zeros.
    """

    annotations: str | None = None
    root: str | None = None
    videos: str | None = None
    caption: str | None = None
    max_seconds: Annotated[float, Range(0.001, 1e6)] | None = None
    num_frames: Frames | None = None
    segments: Annotated[int, Range(1, 1000)] = 1
    missing_audio: Literal["error", "zeros"] = "error"
