"""Stage 2: clips, sounds and texts aligned by contrast, matching and masked words.

Source: `tasks/pretrain.py` and the models of upstream `InternVideo2/multi_modality`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from internvideo_jax.data.wordpiece import WordPiece
from internvideo_jax.evaluation.retrieval_evaluator import RetrievalEvaluator
from internvideo_jax.evaluation.retrieval_options import RetrievalOptions
from internvideo_jax.evaluation.runner import Evaluator
from internvideo_jax.models import abstract_variables, build
from internvideo_jax.models.stage2 import TEMPERATURES, MediaOutput, Medium, Stage2, Stage2Config
from internvideo_jax.models.teacher import TeacherConfig
from internvideo_jax.models.video_vit import token_grid
from internvideo_jax.objectives.cross_modal import (
    MEDIA_OF,
    CrossModalOptions,
    Draws,
    Term,
    cross_modal_losses,
)
from internvideo_jax.objectives.masked_lm import BERT_VOCABULARY, Vocabulary
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.preprocessing import AudioPreprocessing, Preprocessing, TextPreprocessing
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.stage import Batch, PyTree, Variables
from internvideo_jax.training.stages.alignment import align
from internvideo_jax.training.stages.clips import normalized
from internvideo_jax.training.stages.model import ModelStage, clips_of
from internvideo_jax.training.stages.teachers import (
    FrozenTeacher,
    check_teachers,
    load_teachers,
    masked_targets,
    mismatches,
)
from internvideo_jax.training.stages.weights import check_weights, load_weights

# What the batches of a kind of media show: an image is a clip of one frame.
_SHOWN: dict[str, tuple[Medium, ...]] = {
    "video": ("video",),
    "image": ("video",),
    "audio": ("audio",),
    "audio_video": ("video", "audio", "audio_video"),
}
# Of the released recipes.
_HIDING = {"video": MaskConfig("random", 0.8), "image": MaskConfig("random", 0.5)}
_BEFORE_BLOCKS = ("patch_embed/", "cls_token", "pos_embed", "img_pos_embed")
# In the middle of training, the fusion layers would take longer than all else.
_PLAIN_RETRIEVAL = RetrievalOptions(rerank=0)
_VOCABULARY = "vocab.txt"


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
        wrong = {
            name: x for name, x in dataclasses.asdict(self).items() if not 0 <= x < float("inf")
        }
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
      match_group: neighbouring examples among which negatives are drawn; None: the whole batch.
      mask_probability: share of the words that are to be guessed.
      contrastive_gradient_scale: see `objectives.contrastive.contrastive_loss`.
      teacher: what the video tower is aligned with, where that has a weight.
      teacher_path: its saved model.
      teacher_batch: clips, over all devices, of one pass of the teacher; None: a whole batch.
      open_blocks: how many of the last blocks of the video tower, of the text layers and of the
        audio tower are trained, with all that comes behind them; None trains everything.
      retrieval: what is measured of clips to evaluate on.
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
    match_group: int | None = 64
    mask_probability: float = 0.5
    contrastive_gradient_scale: float = 1.0
    teacher: TeacherConfig | None = None
    teacher_path: str | None = None
    teacher_batch: int | None = None
    open_blocks: int | None = None
    retrieval: RetrievalOptions = _PLAIN_RETRIEVAL
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
        wants_sound = [term for term in terms if term.startswith("a")]
        is_guided = "attention" in (self.video_mask.kind, self.image_mask.kind)
        wrong = [
            message
            for is_wrong, message in (
                (not terms, "weights: expected a loss of weight above 0, found none"),
                (
                    missing,
                    f"model.match_heads: expected {', '.join(missing)} for the matching losses,"
                    f" found {model.match_heads}",
                ),
                (
                    wants_sound and model.audio is None,
                    f"model.audio: expected a tower for {', '.join(wants_sound)}, found none",
                ),
                (
                    self.initial_audio and model.audio is None,
                    "initial_audio: expected none for a model without audio tower",
                ),
                (
                    any(term.endswith("mlm") for term in terms) and not model.text.mlm_head,
                    "model.text.mlm_head: expected a head for masked words, found none",
                ),
                (
                    (self.weights.alignment or is_guided) and self.teacher is None,
                    "teacher: expected one, as weights.uta_* or attention masks ask for it",
                ),
                (
                    not 1 < self.max_text_length <= model.text.max_length,
                    f"max_text_length: expected 2 to {model.text.max_length}, found"
                    f" {self.max_text_length}",
                ),
                (
                    self.open_blocks is not None and self.open_blocks < 0,
                    f"open_blocks: expected at least 0, found {self.open_blocks}",
                ),
                (
                    not 0 < self.mask_probability <= 1,
                    f"mask_probability: expected a share in (0, 1], found {self.mask_probability}",
                ),
            )
            if is_wrong
        ]
        wrong += mismatches(model.vision, self.teachers())
        if wrong:
            raise ValueError("; ".join(wrong))

    def teachers(self) -> tuple[FrozenTeacher, ...]:
        """The teacher, if there is one, as the stage runs it."""
        if self.teacher is None:
            return ()
        stride = self.model.vision.encoder.tubelet_size if self.teacher.per_frame else 1
        return (FrozenTeacher("teacher", self.teacher, self.teacher_path, stride),)


class CrossModalStage(ModelStage):
    """Trains a stage-2 model on those losses that the media of its batches allow.

    According to their media, batches hold `video` `[B, T, S, S, 3]`, `image` `[B, 1, S, S, 3]` and
    `audio` `[B, F, M]`; ids of the captions that the losses take, `text` or `text/NAME` `[B, L]`;
    and `clip_id` `[B]`, equal for rows of the same clip.
    """

    loss_is_mean_over_rows = False

    def __init__(
        self,
        config: CrossModalConfig,
        kind: str | None = None,
        num_frames: int | None = None,
        image_size: int | None = None,
    ) -> None:
        """Sets up the stage for the batches of one kind of media.

        Args:
          config: what to train, and how.
          kind: the media; None: the first of those that there are losses for.
          num_frames: frames of their clips; None: as many as the model's.
          image_size: side of their frames; None: the model's.

        Raises:
          ValueError: the media have no loss, or the vocabulary does not fit the model.
        """
        encoder = config.model.vision.encoder
        super().__init__(
            build(config.model),
            initial=config.initial,
            starts_from=config.starts_from,
            preprocessing=_preprocessing(config),
            tokenizer_files={_VOCABULARY: config.vocabulary} if config.vocabulary else {},
        )
        self.config, self.vocabulary = config, _vocabulary(config)
        self.media = tuple(media for media in _SHOWN if _losses(config, media))
        self.kind = self.media[0] if kind is None else kind
        if self.kind not in self.media:
            raise ValueError(
                f"expected media of {', '.join(self.media)}, for which stage.weights has losses,"
                f" found {kind!r}; correct data.mixture, or set a weight"
            )
        is_image = self.kind == "image"
        self.mask = config.image_mask if is_image else config.video_mask
        frames = 1 if is_image else num_frames or encoder.num_frames
        size = image_size or encoder.image_size
        self.clip = (frames, size, size, 3)
        self.grid = token_grid(self.clip[:3], encoder.tubelet_size, encoder.patch_size)
        self.losses = _losses(config, self.kind)

    def of_media(
        self, media: str, num_frames: int | None = None, image_size: int | None = None
    ) -> "CrossModalStage":
        return CrossModalStage(self.config, media, num_frames, image_size)

    @property
    def _pixels(self) -> str | None:
        """The field of the clips' pixels."""
        if "video" not in _SHOWN[self.kind]:
            return None
        return "image" if self.kind == "image" else "video"

    @property
    def _captions(self) -> dict[Term, str]:
        """The caption of each loss."""
        names: dict[Any, str] = dataclasses.asdict(self.config.captions)
        return {term: names.get(term, "") for term in self.losses}

    def example_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        c = self.config
        columns: dict[str, tuple[tuple[int, ...], Any]] = {}
        if self._pixels is not None:
            columns[self._pixels] = self.clip, jnp.uint8
        if "audio" in _SHOWN[self.kind] and c.model.audio is not None:
            columns["audio"] = (c.model.audio.num_frames, c.model.audio.num_mels), jnp.float32
        for term, name in self._captions.items():
            if term != "avc":
                columns[_text_field(name)] = (c.max_text_length,), jnp.int32
        columns["clip_id"] = (), jnp.int32
        return {
            name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
            for name, (shape, dtype) in columns.items()
        }

    def may_start_afresh(self, path: str) -> bool:
        return not path.startswith(("params/vision/encoder/", "params/text/"))

    def trainable(self, path: str) -> bool | np.ndarray:
        if self.config.open_blocks is None:
            return True
        tower, _, rest = path.partition("/")
        model, rest = self.config.model, rest.removeprefix("encoder/")
        if tower == "vision":
            depth, is_before = model.vision.encoder.depth, rest.startswith(_BEFORE_BLOCKS)
        elif tower == "text":
            depth, is_before = model.text.fusion_layer, rest.startswith("embeddings/")
        elif tower == "audio" and model.audio is not None:
            depth, is_before = model.audio.depth, "blocks/" not in rest
        else:
            return True
        if rest.startswith(("blocks/", "text_blocks/")):
            return np.arange(depth) >= depth - self.config.open_blocks
        return not is_before

    def evaluators(self) -> dict[str, Evaluator]:
        """Retrieval; nothing without a vocabulary."""
        c = self.config
        if c.vocabulary is None:
            return {}
        length = c.retrieval.max_text_length or c.max_text_length
        words, video = WordPiece(c.vocabulary, length), self.preprocessing.video
        return {"eval": RetrievalEvaluator(self.module, video, words, c.retrieval)}

    def load_initial(self, variables: Variables) -> Variables:
        params = dict(super().load_initial(variables)["params"])
        for name, (path, config) in self._initial_towers().items():
            inner = params[name]["encoder"] if name == "vision" else params[name]
            loaded = load_weights(
                path,
                config,
                {"params": inner},
                name=f"{name} tower",
                dtype="float32",
                may_start_afresh=_is_new_in_stage2,
            )["params"]
            params[name] = {**params[name], "encoder": loaded} if name == "vision" else loaded
        return {**variables, "params": params}

    def check_weights(self) -> None:
        check_teachers(self.teachers)
        super().check_weights()
        for path, config in self._initial_towers().values():
            shapes = abstract_variables(build(config))
            check_weights(path, config, shapes, may_start_afresh=_is_new_in_stage2)

    def _initial_towers(self) -> dict[str, tuple[str, Any]]:
        """Saved models of single towers to start from, with the towers' configs."""
        c = self.config
        towers: dict[str, tuple[str | None, Any]] = {
            "vision": (c.initial_vision, c.model.vision.encoder),
            "text": (c.initial_text, c.model.text),
            "audio": (c.initial_audio, c.model.audio),
        }
        return {name: (path, config) for name, (path, config) in towers.items() if path}

    @property
    def teachers(self) -> tuple[FrozenTeacher, ...]:
        """The teacher of batches with pixels, if there is one."""
        return self.config.teachers() if self._pixels else ()

    def init_frozen(self, key: jax.Array) -> PyTree:
        return {teacher.name: teacher.init(key) for teacher in self.config.teachers()}

    def load_frozen(self, mesh: Mesh, rules: Rules) -> PyTree:
        return load_teachers(self.config.teachers(), mesh, rules)

    def targets(self, frozen: PyTree, batch: Batch, key: jax.Array) -> PyTree:
        """Kept tokens `kept` `[B, R]`, and a teacher's features there; nothing without pixels."""
        if self._pixels is None:
            return {}
        video = batch[self._pixels]
        per_frame = any(teacher.per_frame for teacher in self.teachers)
        drawn = self.mask.draw(key, len(video), self.grid, per_frame)
        return masked_targets(
            self.teachers, self.mask, frozen, video, drawn, self.config.teacher_batch
        )

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, targets: PyTree, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        draw_key, dropout_key = jax.random.split(key)
        return self.drawn_loss(params, extra, batch, targets, Draws(draw_key), dropout_key)

    def drawn_loss(
        self,
        params: PyTree,
        extra: PyTree,
        batch: Batch,
        targets: PyTree,
        draws: Draws,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        """`loss` with the randomness of negatives and masked words given.

        Args:
          params: as in `loss`, and so are the next three.
          extra: of the model.
          batch: of this kind of media.
          targets: of `targets`.
          draws: hard negatives and masked words.
          dropout_key: of dropout and drop path; None turns them off.
        """
        c = self.config
        if self.vocabulary is None:
            raise ValueError(
                f"vocabulary: expected the file of the model's {c.model.text.vocab_size} words,"
                " found none; set --config.data.vocabulary=vocab.txt"
            )
        pad_id, mode = self.vocabulary.pad_id, {"deterministic": dropout_key is None}
        options = CrossModalOptions(
            match_group=c.match_group,
            mask_probability=c.mask_probability,
            contrastive_gradient_scale=c.contrastive_gradient_scale,
            vocabulary=self.vocabulary,
        )

        def losses(model: Stage2) -> tuple[dict[str, Array], Array]:
            media: dict[Medium, MediaOutput] = {}
            found: dict[str, Array] = {}
            if self._pixels is not None:
                video = normalized(batch[self._pixels])
                encoded = model.encode_video(video, targets["kept"], **mode)
                media["video"] = encoded
                if weights := c.weights.alignment:
                    found |= align(encoded, targets, weights)[1]
            if "audio" in batch:
                media["audio"] = model.encode_audio(batch["audio"], **mode)
            names = {n for term, n in self._captions.items() if term != "avc"}
            texts = {n: _with_mask(batch[_text_field(n)], pad_id) for n in names}
            terms = cross_modal_losses(
                model, media, texts, batch["clip_id"], self._captions, draws, options, **mode
            )
            found |= {str(term): value for term, value in terms.items()}
            return found, model.bounded_temperature()

        rngs = None if dropout_key is None else {"dropout": dropout_key}
        found, temperature = self.module.apply(
            {"params": params, **extra}, rngs=rngs, method=losses
        )
        weights: dict[str, float] = dict(c.weights.alignment)
        weights |= {str(term): weight for term, weight in self.losses.items()}
        total = sum((weights[name] * x for name, x in found.items()), start=jnp.float32(0))
        metrics = {f"{self.kind}/{name}": x for name, x in found.items()}
        return total, ({**metrics, "temperature": temperature}, extra)

    def bounded(self, params: PyTree) -> PyTree:
        """As upstream, which clamps the temperature before each step."""
        if "temperature" not in params:
            return params
        return {**params, "temperature": jnp.clip(params["temperature"], *TEMPERATURES)}


def _losses(config: CrossModalConfig, media: str) -> dict[Term, float]:
    """Weights of the losses that batches of these media have, if the model can take them."""
    shown = _SHOWN[media]
    is_too_short = media == "image" and config.model.vision.encoder.tubelet_size > 1
    if is_too_short or ("audio" in shown and config.model.audio is None):
        return {}
    is_pair = {"video", "audio"} <= set(shown)
    return {
        term: weight
        for term, weight in config.weights.terms.items()
        if (is_pair if term == "avc" else MEDIA_OF[term] in shown)
    }


def _vocabulary(config: CrossModalConfig) -> Vocabulary | None:
    """What the losses need to know of the words; None without a file, if they are not BERT's.

    Raises:
      ValueError: the file is no vocabulary, or not of the model.
    """
    if config.vocabulary is None:
        is_berts = config.model.text.vocab_size == BERT_VOCABULARY.size
        return BERT_VOCABULARY if is_berts else None
    found = WordPiece(config.vocabulary, config.max_text_length).vocabulary
    text = config.model.text
    if (found.size, found.pad_id) != (text.vocab_size, text.pad_id):
        raise ValueError(
            f"vocabulary: expected {text.vocab_size} words with [PAD] on line {text.pad_id + 1}, as"
            f" the model has them, found {found.size} with [PAD] on line {found.pad_id + 1} in"
            f" {config.vocabulary}; name the vocabulary of the model"
        )
    return found


def _preprocessing(config: CrossModalConfig) -> Preprocessing:
    video = clips_of(config.model.vision.encoder)
    audio = text = None
    if (beats := config.model.audio) is not None:
        audio = AudioPreprocessing(num_mels=beats.num_mels, num_frames=beats.num_frames)
    if config.vocabulary is not None:
        text = TextPreprocessing("wordpiece", (_VOCABULARY,), config.max_text_length)
    return Preprocessing(dataclasses.replace(video, resize="bicubic_square"), audio, text)


def _text_field(caption: str) -> str:
    """The field of a caption's ids."""
    return f"text/{caption}" if caption else "text"


def _with_mask(ids: Array, pad_id: int) -> tuple[Array, Array]:
    """Ids of texts and masks, 0 at padding."""
    return ids, (ids != pad_id).astype(jnp.int32)


def _is_new_in_stage2(path: str) -> bool:
    """Whether a tower's parameter is one that models of stage 1 and plain BERTs lack."""
    return "/img_pos_embed" in path or "/cross_" in path or "/mlm_head/" in path
