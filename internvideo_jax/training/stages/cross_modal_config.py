"""The config of stage 2's training: the losses, what they take, and where the towers start."""

import dataclasses
import math
from typing import Any, Literal

from internvideo_jax.evaluation.retrieval.options import RetrievalOptions
from internvideo_jax.models.stage2 import Medium, Stage2Config
from internvideo_jax.models.teacher import TeacherConfig
from internvideo_jax.objectives.cross_modal import MEDIA_OF, Term
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.stages.teachers import FrozenTeacher, mismatches

# What the batches of a kind of media show: an image is a clip of one frame.
SHOWN: dict[str, tuple[Medium, ...]] = {
    "video": ("video",),
    "image": ("video",),
    "audio": ("audio",),
    "audio_video": ("video", "audio", "audio_video"),
}
# Of the released recipes.
_HIDING = {"video": MaskConfig("random", 0.8), "image": MaskConfig("random", 0.5)}
# In the middle of training, the fusion layers would take longer than all else.
_PLAIN_RETRIEVAL = RetrievalOptions(rerank=0)


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the losses; those of weight 0 are not computed.

    Attributes:
      vtc: contrast of clips with texts.
      atc: contrast of sounds with texts.
      avc: contrast of sounds with clips.
      avtc: contrast of clips and their sounds, joined, with texts.
      vtm: matching of texts with clips.
      atm: matching of texts with sounds.
      avtm: matching of texts with clips and sounds.
      mlm: words that are guessed with the help of clips.
      amlm: words that are guessed with the help of sounds.
      avmlm: words that are guessed with the help of both.
      uta_middle: alignment of the video tower's layers with a teacher's.
      uta_final: alignment of its pooled feature.
    """

    vtc: float = 1.0
    atc: float = 0.0
    avc: float = 0.0
    avtc: float = 0.0
    vtm: float = 1.0
    atm: float = 0.0
    avtm: float = 0.0
    mlm: float = 1.0
    amlm: float = 0.0
    avmlm: float = 0.0
    uta_middle: float = 0.0
    uta_final: float = 0.0

    def __post_init__(self) -> None:
        wrong = {name: x for name, x in dataclasses.asdict(self).items() if not 0 <= x < math.inf}
        if wrong:
            raise ValueError(f"expected weights of at least 0, found {wrong}")

    @property
    def terms(self) -> dict[Term, float]:
        """The weights of the losses that compare media with texts or each other, if above 0."""
        weights: dict[Any, float] = dataclasses.asdict(self)
        return {name: x for name, x in weights.items() if x and not name.startswith("uta_")}

    @property
    def alignment(self) -> dict[str, float]:
        """Those of the alignments with a teacher, by term of `distillation_loss`, if above 0."""
        weights = {"clip_middle": self.uta_middle, "clip_final": self.uta_final}
        return {name: x for name, x in weights.items() if x}


@dataclasses.dataclass(frozen=True)
class LossCaptions:
    """Which of a clip's captions a loss takes: the one of a name in the annotations, or "" for any.

    Attributes:
      vtc: of `LossWeights.vtc`, and so are the others.
      atc: see there.
      avtc: see there.
      vtm: see there.
      atm: see there.
      avtm: see there.
      mlm: see there.
      amlm: see there.
      avmlm: see there.
    """

    vtc: str = ""
    atc: str = ""
    avtc: str = ""
    vtm: str = ""
    atm: str = ""
    avtm: str = ""
    mlm: str = ""
    amlm: str = ""
    avmlm: str = ""


@dataclasses.dataclass(frozen=True)
class CrossModalConfig:
    """Training of a stage-2 model.

    Attributes:
      model: its towers and what joins them.
      weights: of the losses.
      captions: of the losses.
      video_mask: which tokens of clips are kept; a ratio of 0 keeps all.
      image_mask: likewise of images.
      vocabulary: file of the words, one on each line; None takes them to be BERT's.
      max_text_length: tokens of a text, its first and last one included.
      match_group: neighbouring examples among which negatives are drawn; 0: the whole batch.
      mask_probability: share of the words that are to be guessed.
      contrastive_gradient_scale: see `objectives.contrastive.contrastive_loss`.
      teacher: what the video tower is aligned with, where that has a weight.
      teacher_path: its saved model.
      teacher_batch: clips, over all devices, of one pass of the teacher; None: a whole batch.
      open_blocks: how many of the last blocks of the video tower, of the text layers and of the
        audio tower are trained, with all that comes behind them; None trains everything.
      retrieval: what is measured of clips to evaluate on.
      fan_in: towers that start, where they start from nothing, with kernels of deviation
        1 / sqrt(inputs), for narrow ones (`stages.model.fan_in`).
      initial: saved stage-2 model to start from; what it lacks (sound, heads) starts untrained.
      starts_from: what a recipe wants `initial` to be; "" allows to start without.
      initial_vision: saved model of stage 1 whose encoder the video tower starts from.
      initial_text: saved BERT that the text tower starts from; of a plain one, the last layers
        become fusion layers whose cross attention starts untrained.
      initial_audio: saved BEATs that the audio tower starts from.
    """

    model: Stage2Config
    weights: LossWeights = LossWeights()
    captions: LossCaptions = LossCaptions()
    video_mask: MaskConfig = _HIDING["video"]
    image_mask: MaskConfig = _HIDING["image"]
    vocabulary: str | None = None
    max_text_length: int = 32
    match_group: int = 64
    mask_probability: float = 0.5
    contrastive_gradient_scale: float = 1.0
    teacher: TeacherConfig | None = None
    teacher_path: str | None = None
    teacher_batch: int | None = None
    open_blocks: int | None = None
    retrieval: RetrievalOptions = _PLAIN_RETRIEVAL
    fan_in: tuple[Literal["vision", "text", "audio"], ...] = ()
    initial: str | None = None
    starts_from: str = ""
    initial_vision: str | None = None
    initial_text: str | None = None
    initial_audio: str | None = None

    def __post_init__(self) -> None:
        model, terms = self.model, self.weights.terms
        heads = {"vtm": "video", "atm": "audio", "avtm": "audio_video"}
        missing = [medium for term, medium in heads.items() if term in terms]
        missing = [medium for medium in missing if medium not in model.match_heads]
        is_guided = "attention" in (self.video_mask.kind, self.image_mask.kind)
        checks = {
            "weights: expected a loss of weight above 0, found none": bool(terms),
            f"model.match_heads: expected {', '.join(missing)} for the matching losses, found"
            f" {', '.join(model.match_heads)}": not missing,
            "model.audio: expected an audio tower for the losses of sound, found none": (
                model.audio is not None or not any(term.startswith("a") for term in terms)
            ),
            "initial_audio: expected none for a model without audio tower": (
                model.audio is not None or self.initial_audio is None
            ),
            "model.text.mlm_head: expected a head for masked words, found none": (
                model.text.mlm_head or not any(term.endswith("mlm") for term in terms)
            ),
            "teacher: expected one, as weights.uta_* or attention masks ask for it": (
                self.teacher is not None or not (self.weights.alignment or is_guided)
            ),
            f"max_text_length: expected 2 to {model.text.max_length}, found"
            f" {self.max_text_length}": 1 < self.max_text_length <= model.text.max_length,
            f"match_group: expected at least 0, found {self.match_group}": self.match_group >= 0,
            f"open_blocks: expected at least 0, found {self.open_blocks}": (
                self.open_blocks is None or self.open_blocks >= 0
            ),
            f"mask_probability: expected a share in (0, 1], found {self.mask_probability}": (
                0 < self.mask_probability <= 1
            ),
        }
        problems = [message for message, holds in checks.items() if not holds]
        problems += mismatches(model.vision, self.teachers())
        if problems:
            raise ValueError("; ".join(problems))

    def teachers(self) -> tuple[FrozenTeacher, ...]:
        """The teacher, if there is one, as the stage runs it."""
        if self.teacher is None:
            return ()
        stride = self.model.vision.encoder.tubelet_size if self.teacher.per_frame else 1
        return (FrozenTeacher("teacher", self.teacher, self.teacher_path, stride),)

    def losses(self, media: str) -> dict[Term, float]:
        """Weights of the losses that batches of these media have, if the model takes them."""
        shown = SHOWN[media]
        is_too_short = media == "image" and self.model.vision.encoder.tubelet_size > 1
        if is_too_short or ("audio" in shown and self.model.audio is None):
            return {}
        is_pair = {"video", "audio"} <= set(shown)
        return {
            term: weight
            for term, weight in self.weights.terms.items()
            if (is_pair if term == "avc" else MEDIA_OF[term] in shown)
        }
