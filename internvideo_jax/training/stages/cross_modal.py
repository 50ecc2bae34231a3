"""Stage 2: clips, sounds and texts aligned by contrast, matching and masked words.

Source: `tasks/pretrain.py` and the models of upstream `InternVideo2/multi_modality`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from internvideo_jax.data.fields.text import given_vocabulary
from internvideo_jax.data.wordpiece import WordPiece
from internvideo_jax.evaluation.retrieval.evaluator import RetrievalEvaluator, check_text_length
from internvideo_jax.evaluation.runner import Evaluator
from internvideo_jax.models import abstract_variables, build, gradient_flops, product_flops
from internvideo_jax.models.stage2 import TEMPERATURES, MediaOutput, Medium, Stage2
from internvideo_jax.models.video_vit import token_grid
from internvideo_jax.objectives.cross_modal import (
    CrossModalOptions,
    Draws,
    Term,
    cross_modal_losses,
)
from internvideo_jax.objectives.masked_lm import BERT_VOCABULARY, Vocabulary
from internvideo_jax.objectives.matching import check_groups
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.preprocessing import AudioPreprocessing, Preprocessing, TextPreprocessing
from internvideo_jax.training.stage import Batch, PyTree
from internvideo_jax.training.stages.alignment import align
from internvideo_jax.training.stages.clips import check_pass, normalized
from internvideo_jax.training.stages.cross_modal_config import SHOWN, CrossModalConfig
from internvideo_jax.training.stages.model import ModelStage, TowerStart, clips_of
from internvideo_jax.training.stages.teachers import (
    FrozenTeacher,
    check_teachers,
    load_teachers,
    masked_targets,
)

_BEFORE_BLOCKS = ("patch_embed/", "cls_token", "pos_embed", "img_pos_embed")
_VOCABULARY = "vocab.txt"
# Of a batch whose FLOPs are counted, where the whole batch is the group of negatives.
_ROWS = 64
# Where their parameters lie.
_TOWERS = {"vision": "vision/encoder", "text": "text", "audio": "audio"}


class CrossModalStage(ModelStage):
    """Trains a stage-2 model on those losses that the media of its batches allow.

    According to their media, batches hold `video` `[B, T, S, S, 3]`, `image` `[B, 1, S, S, 3]` and
    `audio` `[B, F, M]`; ids of the captions that the losses take, `text` or `text/NAME` `[B, L]`;
    and `clip_id` `[B]`, equal for rows of the same clip.
    """

    module: Stage2
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
          ValueError: the media have no loss, the vocabulary does not fit the model, or the teacher
            does not fit the clips.
        """
        encoder = config.model.vision.encoder
        super().__init__(
            build(config.model),
            initial=config.initial,
            starts_from=config.starts_from,
            towers=_tower_starts(config),
            fan_in=[_TOWERS[name] for name in config.fan_in],
            preprocessing=_preprocessing(config),
            tokenizer_files={_VOCABULARY: config.vocabulary} if config.vocabulary else {},
        )
        self.config, self.vocabulary = config, _vocabulary(config)
        self.media = tuple(media for media in SHOWN if config.losses(media))
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
        self.losses = config.losses(self.kind)
        for teacher in self.teachers:
            if teacher.grid(frames) != self.grid:
                raise ValueError(
                    f"expected a teacher with the {'x'.join(map(str, self.grid))} tokens that"
                    f" {self.kind} of {frames} frames of {size} pixels has, found one with"
                    f" {'x'.join(map(str, teacher.grid(frames)))}; correct data.mixture or"
                    " stage.teacher"
                )

    def of_media(
        self, media: str, num_frames: int | None = None, image_size: int | None = None
    ) -> "CrossModalStage":
        return CrossModalStage(self.config, media, num_frames, image_size)

    @property
    def _pixels(self) -> str | None:
        """The field of the clips' pixels."""
        if "video" not in SHOWN[self.kind]:
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
        if "audio" in SHOWN[self.kind] and c.model.audio is not None:
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
        """Retrieval.

        Raises:
          ValueError: there is no vocabulary, or texts are longer than the model takes.
        """
        c = self.config
        length = c.retrieval.max_text_length or c.max_text_length
        words, video = WordPiece(given_vocabulary(c.vocabulary), length), self.preprocessing.video
        check_text_length(self.module, words, "--config.stage.retrieval.max_text_length")
        return {"eval": RetrievalEvaluator(self.module, video, words, c.retrieval)}

    def check_weights(self) -> None:
        check_teachers(self.config.teachers())
        super().check_weights()

    def check_batch(self, rows: int, devices: int) -> None:
        if self._pixels is not None:
            check_pass(rows, self.config.teacher_batch)
        group = self.config.match_group
        if not group or not any(term.endswith("tm") for term in self.losses):
            return
        try:
            check_groups(rows, group, devices)
        except ValueError as error:
            raise ValueError(
                f"{error}; set --config.stage.match_group (0: the whole batch) or"
                " --config.train.batch_size"
            ) from None

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
            match_group=c.match_group or None,
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
                    _, terms = align(encoded, targets, weights)
                    found |= {name.replace("clip_", "uta_"): x for name, x in terms.items()}
            if "audio" in batch:
                media["audio"] = model.encode_audio(batch["audio"], **mode)
            names = {n for term, n in self._captions.items() if term != "avc"}
            texts = {n: _with_mask(batch[_text_field(n)], pad_id) for n in names}
            compared = cross_modal_losses(
                model, media, texts, batch["clip_id"], self._captions, draws, options, **mode
            )
            found |= {str(term): value for term, value in compared.items()}
            return found, model.bounded_temperature()

        rngs = None if dropout_key is None else {"dropout": dropout_key}
        found, temperature = self.module.apply(
            {"params": params, **extra}, rngs=rngs, method=losses
        )
        weights: dict[str, float] = dataclasses.asdict(c.weights)
        total = sum((weights[name] * x for name, x in found.items()), start=jnp.float32(0))
        metrics = {f"{self.kind}/{name}": x for name, x in found.items()}
        return total, ({**metrics, "temperature": temperature}, extra)

    def flops(self) -> dict[str, int]:
        """FLOPs of a training step per row, by part; nothing without a vocabulary.

        The similarities are those of a batch of `match_group` rows, and what is frozen counts as if
        it were trained.
        """
        if self.vocabulary is None:
            return {}
        key, rows = jax.random.key(0), self.config.match_group or _ROWS
        batch, frozen = self.example_batch(rows), jax.eval_shape(self.init_frozen, key)
        with nn.logical_axis_rules(()):
            targets = jax.eval_shape(self.targets, nn.unbox(frozen), batch, key)
        params = abstract_variables(self.module)["params"]

        def loss(params: PyTree, batch: Batch, targets: PyTree) -> jax.Array:
            return self.loss(params, {}, batch, targets, key)[0]

        parts = product_flops(loss, params, batch, targets, unread=False)
        trained = {name: gradient_flops(total) // rows for name, total in parts.items()}
        return trained | {teacher.name: teacher.flops(self.grid) for teacher in self.teachers}

    def bounded(self, params: PyTree) -> PyTree:
        """As upstream, which clamps the temperature before each step."""
        if "temperature" not in params:
            return params
        return {**params, "temperature": jnp.clip(params["temperature"], *TEMPERATURES)}


def _tower_starts(config: CrossModalConfig) -> tuple[TowerStart, ...]:
    """The towers that may start from saved models of their own."""
    model = config.model
    return (
        TowerStart(
            _TOWERS["vision"], config.initial_vision, model.vision.encoder, _is_new_in_stage2
        ),
        TowerStart(_TOWERS["text"], config.initial_text, model.text, _is_new_in_stage2),
        TowerStart(_TOWERS["audio"], config.initial_audio, model.audio, _is_new_in_stage2),
    )


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
