"""A zero-shot measurement: the parts `zero_shot` or `multiple_choice`, and `eval_data`, of its
config."""

import dataclasses
from typing import Annotated

from internvideo_jax.config import CheckedConfig, Frames, Range


@dataclasses.dataclass(frozen=True)
class ZeroShotOptions(CheckedConfig):
    """How classes, or the candidates of clips, become texts that clips are compared with.

    Attributes:
      prompts: templates in which "{}" stands for the name, a file of them, one on each line, or the
        data set whose published ones are meant ("k400"); the cosines with all of them are averaged.
      clean_texts: whether texts go through `data.transforms.captions.clean_caption`.
      split_names: whether names such as ApplyEyeMakeup, brush_hair and adult+female+singing become
        words with spaces between them.
    """

    prompts: str | tuple[str, ...] = "{}"
    clean_texts: bool = True
    split_names: bool = False


@dataclasses.dataclass(frozen=True)
class ChoiceData(CheckedConfig):
    """Which clips, and what is shown of them; all else follows from the model.

    Attributes:
      annotations: a list that the measurement reads (docs/zero_shot.md).
      root: folder of the videos; None is that of the list.
      num_frames: frames of a view; None is as many as the model was made for.
      segments: views of a clip, whose embeddings are averaged.
    """

    annotations: str | None = None
    root: str | None = None
    num_frames: Frames | None = None
    segments: Annotated[int, Range(1, 1000)] = 1


@dataclasses.dataclass(frozen=True)
class ZeroShotData(ChoiceData):
    """Clips with labels.

    Attributes:
      classes: names of the classes in the order of the labels' numbers, or a file of them; None
        takes the names that the labels are.
    """

    classes: str | tuple[str, ...] | None = None
