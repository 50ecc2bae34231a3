"""CLIP models: clips and texts brought together by contrast, by whole towers or parts of them.

Source: `tasks_clip/pretrain.py` and the CLIP models of upstream `InternVideo2/multi_modality`, and
`tasks/pretrain.py` of `InternVideo1/Pretrain/ViCLIP`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from internvideo_jax.convert.engine.family import family_of
from internvideo_jax.convert.engine.upstream import architecture_of
from internvideo_jax.data.fields.text import given_vocabulary
from internvideo_jax.data.tokenizers import Tokenizer, tokenizer_of
from internvideo_jax.evaluation.retrieval.evaluator import RetrievalEvaluator
from internvideo_jax.evaluation.runner import Evaluator
from internvideo_jax.models import Tower, abstract_variables, build, product_flops
from internvideo_jax.models.dual_encoder import DualEncoder
from internvideo_jax.models.video_vit import token_grid
from internvideo_jax.objectives.contrastive import contrastive_loss
from internvideo_jax.preprocessing import TextPreprocessing
from internvideo_jax.training.stage import Batch, PyTree, Variables
from internvideo_jax.training.stages.clips import normalized
from internvideo_jax.training.stages.contrastive_config import ContrastiveConfig
from internvideo_jax.training.stages.model import ModelStage, TowerStart, portable
from internvideo_jax.training.state import merge, split_trained
from internvideo_jax.training.word_dropping import without_words

_ADAPTERS = ("/lora_a", "/lora_b")
# Tables of positions, wherever layers for decaying rates have them.
_POSITIONS = ("pos_embed", "img_pos_embed")
# Of a batch whose FLOPs are counted.
_ROWS = 64


class ContrastiveStage(ModelStage):
    """Trains a model that compares clips with texts.

    Batches hold `video` `[B, T, S, S, 3]` or `image` `[B, 1, S, S, 3]`; ids of a caption, `text` or
    `text/NAME` `[B, L]`; and `clip_id` `[B]`, equal for rows of the same clip.
    """

    module: DualEncoder
    loss_is_mean_over_rows = False

    def __init__(
        self,
        config: ContrastiveConfig,
        kind: str = "video",
        num_frames: int | None = None,
        image_size: int | None = None,
    ) -> None:
        """Sets up the stage for the batches of one kind of media.

        Args:
          config: what to train, and how.
          kind: the media, "video" or "image".
          num_frames: frames of their clips; None: as many as the model's.
          image_size: side of their frames; None: the model's.

        Raises:
          ValueError: there is no such kind, or the vocabulary does not fit the model.
        """
        vision, text = config.model.vision, config.model.text
        preprocessing = family_of(architecture_of(config.model)).preprocessing(config.model)
        assert preprocessing.text is not None
        self.config, self.text = config, preprocessing.text
        files = _tokenizer_files(config, self.text)
        super().__init__(
            build(config.model),
            initial=config.initial,
            starts_from=config.starts_from,
            towers=(
                TowerStart("vision", config.initial_vision, vision),
                TowerStart("text", config.initial_text, text, _is_adapter),
            ),
            # A model without its vocabulary cannot say how it reads texts.
            preprocessing=preprocessing if files else dataclasses.replace(preprocessing, text=None),
            tokenizer_files=files,
        )
        self.media = ("video", "image") if vision.tubelet_size == 1 else ("video",)
        if kind not in self.media:
            raise ValueError(
                f"expected media of {', '.join(self.media)}, as the model takes them, found"
                f" {kind!r}; correct data.mixture"
            )
        self.kind = kind
        frames = 1 if kind == "image" else num_frames or vision.num_frames
        size = image_size or vision.image_size
        self.clip = (frames, size, size, 3)
        self.grid = token_grid(self.clip[:3], vision.tubelet_size, vision.patch_size)
        if files:
            _check_vocabulary(self._tokenizer(), config)

    def of_media(
        self, media: str, num_frames: int | None = None, image_size: int | None = None
    ) -> "ContrastiveStage":
        return ContrastiveStage(self.config, media, num_frames, image_size)

    @property
    def _text_field(self) -> str:
        caption = self.config.caption
        return f"text/{caption}" if caption else "text"

    def example_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        columns: dict[str, tuple[tuple[int, ...], Any]] = {
            self.kind: (self.clip, jnp.uint8),
            self._text_field: ((self.text.max_length,), jnp.int32),
            "clip_id": ((), jnp.int32),
        }
        return {
            name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
            for name, (shape, dtype) in columns.items()
        }

    def may_start_afresh(self, path: str) -> bool:
        return _is_adapter(path)

    def trainable(self, path: str) -> bool | np.ndarray:
        c = self.config
        for found, is_text in (
            (self.module.video_tower(), False),
            (self.module.text_tower(), True),
        ):
            assert found is not None
            tower, names = found
            prefix = "/".join((*names, ""))
            if not path.startswith(prefix):
                continue
            inner = path.removeprefix(prefix)
            if is_text and c.text == "frozen":
                return False
            if is_text and c.text == "adapters":
                return inner == "projection" or _is_adapter(inner)
            return _is_open(tower, inner, c.open_blocks)
        return True

    def evaluators(self) -> dict[str, Evaluator]:
        """Retrieval.

        Raises:
          ValueError: there is no vocabulary.
        """
        given_vocabulary(self.config.vocabulary)
        video, options = self.preprocessing.video, self.config.retrieval
        return {"eval": RetrievalEvaluator(self.module, video, self._tokenizer(), options)}

    def _tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.text, self.tokenizer_files)

    def _check_start(self) -> None:
        super()._check_start()
        c = self.config
        frozen = {
            "vision": c.open_blocks is not None and not c.initial_vision,
            "text": c.text != "trained" and not c.initial_text,
        }
        if c.initial is None and (missing := [name for name, is_so in frozen.items() if is_so]):
            fields = " and ".join(f"stage.initial_{name}" for name in missing)
            raise ValueError(
                f"expected saved models in {fields}, or a whole one in stage.initial, found none:"
                f" most of the {' and the '.join(missing)} tower stays as it is, and would stay"
                " untrained; set --config.stage.initial=DIR or these fields"
                " (docs/clip_training.md)"
            )

    def targets(self, frozen: PyTree, batch: Batch, key: jax.Array) -> PyTree:
        """What is hidden: the tokens `kept` `[B, R]` are not, the words `dropped` `[B, L]` are."""
        clips, texts = batch[self.kind], batch[self._text_field]
        mask_key, word_key = jax.random.split(key)
        targets: dict[str, Array] = {}
        if self.config.mask.ratio:
            mask = self.config.mask
            drawn = mask.draw(mask_key, len(clips), self.grid, per_frame=False)
            targets["kept"] = mask.kept(drawn, None)
        if self.config.word_drop:
            targets["dropped"] = jax.random.bernoulli(word_key, self.config.word_drop, texts.shape)
        return targets

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, targets: PyTree, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        variables = {"params": params, **extra}
        loss, temperature = self._compare(self.module, variables, batch, targets, key)
        return loss, ({f"{self.kind}/vtc": loss, "temperature": temperature}, extra)

    def _compare(
        self, module: DualEncoder, variables: Variables, batch: Batch, targets: PyTree, key: Array
    ) -> tuple[Array, Array]:
        """The loss, and the temperature."""
        c = self.config
        ids = batch[self._text_field]
        if "dropped" in targets:
            ids = without_words(ids, targets["dropped"])

        def compare(model: DualEncoder) -> tuple[Array, Array]:
            clips = model.encode_video(
                normalized(batch[self.kind]),
                targets.get("kept"),
                deterministic=c.open_blocks is not None,
            )
            texts = model.encode_text(ids, deterministic=c.text == "frozen")
            temperature = model.bounded_temperature()
            loss = contrastive_loss(
                clips.embedding,
                texts.embedding,
                temperature,
                batch["clip_id"],
                gradient_scale=c.contrastive_gradient_scale,
            )
            return loss, temperature

        found: Any = module.apply(variables, rngs={"dropout": key}, method=compare)
        loss, temperature = found
        return loss, temperature

    def flops(self) -> dict[str, int]:
        """FLOPs of a training step per row; what is frozen counts with its forward pass alone.

        The similarities are those of a batch of 64 rows.
        """
        key = jax.random.key(0)
        batch = self.example_batch(_ROWS)
        with nn.logical_axis_rules(()):
            targets = jax.eval_shape(self.targets, {}, batch, key)
        # What is computed again does not count.
        module: Any = build(portable(self.config.model))
        trained, fixed = split_trained(abstract_variables(module)["params"], self.trainable)

        def gradients(trained: PyTree, fixed: PyTree, batch: Batch, targets: PyTree) -> PyTree:
            def loss(trained: PyTree) -> Array:
                variables = {"params": merge(fixed, trained)}
                return self._compare(module, variables, batch, targets, key)[0]

            return jax.grad(loss)(trained)

        parts = product_flops(gradients, trained, fixed, batch, targets, unread=False)
        return {"model": sum(parts.values()) // _ROWS}

    def bounded(self, params: PyTree) -> PyTree:
        """As upstream, which clamps the temperature before each step."""
        if "temperature" not in params:
            return params
        least = self.config.model.min_temperature
        return {**params, "temperature": jnp.maximum(params["temperature"], least)}


def _tokenizer_files(config: ContrastiveConfig, text: TextPreprocessing) -> dict[str, str]:
    """Where the tokenizer's file lies, by the name that it has beside saved models."""
    (name,) = text.files
    return {name: config.vocabulary} if config.vocabulary else {}


def _check_vocabulary(tokenizer: Tokenizer, config: ContrastiveConfig) -> None:
    text: Any = config.model.text
    size = getattr(text, "lm", text).vocab_size
    if tokenizer.vocab_size != size:
        raise ValueError(
            f"vocabulary: expected {size} tokens, as the model has them, found"
            f" {tokenizer.vocab_size} in {config.vocabulary}; name the model's tokenizer"
        )


def _is_adapter(path: str) -> bool:
    return path.endswith(_ADAPTERS)


def _is_open(tower: Tower, path: str, open_blocks: int | None) -> bool | np.ndarray:
    """Whether a parameter of a tower is trained with its last blocks; of stacked ones, by layer."""
    if open_blocks is None:
        return True
    if path.startswith(_POSITIONS):
        return False
    layer = np.asarray(tower.layer_of(path))
    is_open: np.ndarray = layer > max(tower.last_layer - 1 - open_blocks, 0)
    return is_open if is_open.ndim else bool(is_open)
