"""Video classification: full fine-tuning, attentive and linear probing.

Source: `run_finetuning.py`, `run_linear_probing.py` and `engines/engine_for_finetuning.py` of
upstream `InternVideo2/single_modality`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from internvideo_jax.evaluation.classification import ClassificationEvaluator
from internvideo_jax.evaluation.runner import Evaluator
from internvideo_jax.models import VideoClassifier, VideoClassifierConfig, gradient_flops
from internvideo_jax.objectives.classification import soft_cross_entropy
from internvideo_jax.training.mixup import MixConfig, draw_mix, mix_targets, mix_video
from internvideo_jax.training.stage import Batch, PyTree
from internvideo_jax.training.stages.clips import normalized
from internvideo_jax.training.stages.model import ModelStage

_INPUT = ("patch_embed", "pos_embed", "cls_token")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Which of the encoder's parameters a probe trains besides everything outside the encoder.

    Attributes:
      open_block_num: number of last blocks.
      open_clip_projector: whether the attention pooler is.
    """

    open_block_num: int = 0
    open_clip_projector: bool = False


@dataclasses.dataclass(frozen=True)
class ClassifyConfig:
    """Training of a classifier; one label for each clip, cross-entropy.

    Attributes:
      model: encoder and head.
      mix: mixup, cutmix and label smoothing.
      mix_group: neighbouring rows of a micro-batch that share one draw and are each other's
        partners (upstream: what one GPU holds); None or more than there are: all of them.
      probe: what is trained; None trains everything.
      initial: saved model to start from: a student, an encoder or another classifier.
      starts_from: what a recipe wants `initial` to be; "" allows to start from nothing.
      new_head: start an untrained last layer although the saved model has one; None does so where
        that is of other classes.
      fan_in: start an encoder that starts from nothing with kernels of deviation 1 / sqrt(inputs),
        for narrow ones (`stages.model.fan_in`).
      classes: names of the classes in the order of the logits; () if they have none.
    """

    model: VideoClassifierConfig
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)
    mix_group: int | None = None
    probe: ProbeConfig | None = None
    initial: str | None = None
    starts_from: str = ""
    new_head: bool | None = False
    fan_in: bool = False
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.classes and len(self.classes) != self.model.num_classes:
            raise ValueError(
                f"classes: expected names of model.num_classes={self.model.num_classes} classes,"
                f" found {len(self.classes)}"
            )
        if self.mix_group is not None and (self.mix_group < 2 or self.mix_group % 2):
            raise ValueError(
                "mix_group: expected an even number of rows, so that all have a partner, found"
                f" {self.mix_group}"
            )
        depth = self.model.encoder.depth
        if self.probe is not None and not 0 <= self.probe.open_block_num <= depth:
            raise ValueError(
                f"probe.open_block_num: expected 0 to {depth}, the number of blocks, found"
                f" {self.probe.open_block_num}"
            )


class ClassifyStage(ModelStage):
    """Classification as the loop wants it.

    A batch holds `video` `[B, T, S, S, 3]`, normalised floats (or uint8 pixels), and `label` `[B]`.
    """

    def __init__(self, config: ClassifyConfig) -> None:
        module = VideoClassifier(config.model)
        super().__init__(
            module,
            initial=config.initial,
            starts_from=config.starts_from,
            new_head=config.new_head,
            fan_in=("encoder",) if config.fan_in else (),
            classes=config.classes or None,
        )
        self.config = config

    def example_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        (video,) = self.module.example_inputs(batch_size)
        return {"video": video, "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}

    @property
    def num_classes(self) -> int:
        """Of the head."""
        return self.config.model.num_classes

    def trainable(self, path: str) -> bool | np.ndarray:
        """Upstream's rule for probes, with the last blocks counted as numbers.

        There they are unfrozen by a prefix of their names, so that block 3 opens 30 to 39 as well.
        """
        probe = self.config.probe
        names = path.split("/")
        if probe is None or names[0] != "encoder":
            return True
        if names[1] == "blocks":
            if probe.open_block_num == 0:
                return False
            depth = self.config.model.encoder.depth
            return np.arange(depth) >= depth - probe.open_block_num
        if names[1] == "pooler":
            return probe.open_clip_projector
        return not names[1].startswith(_INPUT)

    def check_batch(self, rows: int, devices: int) -> None:
        group = min(self.config.mix_group or rows, rows)
        if rows % group:
            raise ValueError(
                f"expected a mix_group that divides the {rows} rows of a (micro-)batch, found"
                f" {group}; change --config.stage.mix_group, the batch size or the accumulation"
            )

    def targets(self, frozen: PyTree, batch: Batch, key: jax.Array) -> PyTree:
        """Mixed clips `video` `[B, T, S, S, 3]` and soft labels `label` `[B, C]`."""
        video = normalized(batch["video"])
        rows = video.shape[0]
        self.check_batch(rows, 1)
        group = min(self.config.mix_group or rows, rows)

        def mix(video: Array, label: Array, key: Array) -> tuple[Array, Array]:
            height, width = video.shape[2:4]
            draw = draw_mix(key, self.config.mix, (height, width))
            smoothing = self.config.mix.label_smoothing
            classes = self.config.model.num_classes
            return mix_video(video, draw), mix_targets(label, draw, classes, smoothing)

        def grouped(x: Array) -> Array:
            return x.reshape(rows // group, group, *x.shape[1:])

        keys = jax.random.split(key, rows // group)
        mixed = jax.vmap(mix)(grouped(video), grouped(batch["label"]), keys)
        video, label = (x.reshape(rows, *x.shape[2:]) for x in mixed)
        return {"video": video, "label": label}

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, targets: PyTree, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        output: Any
        output, extra = self.module.apply(
            {"params": params, **extra},
            targets["video"],
            deterministic=False,
            rngs={"dropout": key},
            mutable=list(extra),
        )
        loss = soft_cross_entropy(output.logits, targets["label"])
        # Of mixed clips the label with the larger share counts.
        hits = output.logits.argmax(-1) == targets["label"].argmax(-1)
        return loss, ({"top1": 100 * jnp.mean(hits, dtype=jnp.float32)}, extra)

    def evaluators(self) -> dict[str, Evaluator]:
        """Accuracy of probabilities averaged over the views of clips."""
        return {"eval": ClassificationEvaluator(self.module, self.preprocessing.require_video())}

    def flops(self) -> dict[str, int]:
        """FLOPs of a training step per clip, by part; frozen blocks have no backward pass."""
        frozen: set[str] = set()
        if (probe := self.config.probe) is not None:
            frozen.add("patch_embed")
            # The stacked blocks are differentiated as one, and the pooler on the way to them.
            if not probe.open_block_num:
                frozen |= {"blocks"} if probe.open_clip_projector else {"blocks", "pooler"}
        parts = self.module.flops().items()
        return {name: x if name in frozen else gradient_flops(x) for name, x in parts}
