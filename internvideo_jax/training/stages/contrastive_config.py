"""The config of the training of CLIP models: what is hidden, what is trained, where it starts."""

import dataclasses
from typing import Literal

from internvideo_jax.evaluation.retrieval.options import RetrievalOptions
from internvideo_jax.models.internvideo2_clip import InternVideo2ClipConfig
from internvideo_jax.models.viclip import ViClipConfig
from internvideo_jax.training.masking import MaskConfig

_EVERYTHING = MaskConfig("random", 0.0)
_RETRIEVAL = RetrievalOptions()


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Training of a model that compares clips with texts, by contrast.

    Attributes:
      model: its towers.
      mask: which tokens of clips and images are kept; a ratio of 0 keeps all.
      word_drop: share of the words of a text that are left out, another one each time.
      caption: which of a clip's captions is compared: the one of a name in the annotations, or ""
        for any.
      open_blocks: how many of the last blocks of the video tower are trained, with all that comes
        behind them; 0 trains its pooler and what aligns it alone, None everything. While blocks
        stay as they are, nothing of the tower is dropped at random.
      text: what is trained of the text tower: nothing; its adapters (LoRA), if it has any, and its
        projection; or all, for which `open_blocks` counts, too.
      vocabulary: file of the tokenizer.
      contrastive_gradient_scale: see `objectives.contrastive.contrastive_loss`.
      retrieval: what is measured of clips to evaluate on.
      initial: saved model of the same kind to start from; adapters that it lacks start untrained.
      starts_from: what a recipe wants `initial` to be; "" allows to start without.
      initial_vision: saved model that the video tower starts from: an encoder, or whatever has one
        like it, as models of stage 2 and distilled students do.
      initial_text: saved model that the text tower starts from: one, or what has one like it.
    """

    model: ViClipConfig | InternVideo2ClipConfig
    mask: MaskConfig = _EVERYTHING
    word_drop: float = 0.0
    caption: str = ""
    open_blocks: int | None = None
    text: Literal["frozen", "adapters", "trained"] = "frozen"
    vocabulary: str | None = None
    contrastive_gradient_scale: float = 1.0
    retrieval: RetrievalOptions = _RETRIEVAL
    initial: str | None = None
    starts_from: str = ""
    initial_vision: str | None = None
    initial_text: str | None = None

    def __post_init__(self) -> None:
        checks = {
            "mask.kind: expected 'random' or 'tube', as there is no teacher, found 'attention'": (
                self.mask.kind != "attention"
            ),
            f"mask.ratio: expected a share from 0 to below 1, found {self.mask.ratio}": (
                0 <= self.mask.ratio < 1
            ),
            f"word_drop: expected a share from 0 to below 1, found {self.word_drop}": (
                0 <= self.word_drop < 1
            ),
            f"open_blocks: expected at least 0, found {self.open_blocks}": (
                self.open_blocks is None or self.open_blocks >= 0
            ),
            "contrastive_gradient_scale: expected a number above 0, found"
            f" {self.contrastive_gradient_scale}": self.contrastive_gradient_scale > 0,
        }
        if problems := [message for message, holds in checks.items() if not holds]:
            raise ValueError("; ".join(problems))
