"""Alignment of a masked student with frozen teachers: pre-training, distillation."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from internvideo_jax.models import build, gradient_flops
from internvideo_jax.objectives.distillation import distillation_loss
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.stage import Batch, PyTree
from internvideo_jax.training.stages.clips import check_pass, normalized
from internvideo_jax.training.stages.model import ModelStage
from internvideo_jax.training.stages.teachers import (
    CACHE,
    FrozenTeacher,
    cached_targets,
    check_teachers,
    load_teachers,
    masked_targets,
    mismatches,
)


def align(
    output: Any, targets: Mapping[str, Array], weights: Mapping[str, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The alignment loss of a student with what `masked_targets` or `cached_targets` gave.

    Args:
      output: the student's; its fields named in `weights` have layers first, `[K, B, R, D]`.
      targets: by term; of layers `[B, K, R, D]`.
      weights: weight of each term of `objectives.distillation.distillation_loss`.

    Returns:
      The loss, and the unweighted loss of each term.
    """
    wanted = {
        name: x.swapaxes(0, 1) if x.ndim == 4 else x
        for name, x in targets.items()
        if name in weights
    }
    return distillation_loss({name: getattr(output, name) for name in wanted}, wanted, weights)


@dataclasses.dataclass(frozen=True)
class AlignmentConfig(abc.ABC):
    """What runs of alignment have in common.

    Attributes:
      student: what is trained.
      teachers: "cached" takes their features from the batch (see `AlignmentStage.features`).
      teacher_batch: clips, over all devices, of one pass of the teachers; None: a whole
        micro-batch. Full-token features live for one pass only.
      mask: which tokens the student keeps.
      clip_middle_weight: weight of the alignment with the layers of the CLIP-side teacher.
      clip_final_weight: weight of that with its pooled feature.
      initial: saved model that the student starts from; None starts from nothing.
    """

    student: Any
    _: dataclasses.KW_ONLY
    teachers: Literal["frozen", "cached"] = "frozen"
    teacher_batch: int | None = None
    mask: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    clip_middle_weight: float = 1.0
    clip_final_weight: float = 1.0
    initial: str | None = None

    @property
    def stride(self) -> int:
        """The student sees every `stride`-th frame of a batch's clips."""
        return 1

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term of the loss, as in `align`."""
        # A student without final decoder has nothing to align with the pooled feature.
        final = self.clip_final_weight if self.student.clip_final_dim else 0.0
        return {"clip_middle": self.clip_middle_weight, "clip_final": final}

    @abc.abstractmethod
    def frozen_teachers(self) -> tuple[FrozenTeacher, ...]:
        """The teachers as the stage runs them; the attention of the first may guide the mask."""

    def __post_init__(self) -> None:
        """Checks that student and teachers agree on layers, widths, token grids and frames."""
        wrong = mismatches(self.student, self.frozen_teachers(), self.stride)
        if wrong:
            raise ValueError(
                "student and teachers do not match: "
                + "; ".join(wrong)
                + "; change the student's decoders or the teacher"
            )


class AlignmentStage(ModelStage):
    """Trains a student on the tokens that a mask keeps to give its teachers' features there.

    A batch holds `video` `[B, T, S, S, 3]`: uint8 pixels, or floats that are normalised already.
    With cached teachers it also holds what `features` gives, and no teacher runs; the clips must
    then be those that the features are of, augmented no further.
    """

    def __init__(self, config: AlignmentConfig) -> None:
        student = build(config.student)
        super().__init__(student, initial=config.initial)
        self.config = student.config
        self.teachers, self.stride = config.frozen_teachers(), config.stride
        self.weights = config.weights
        self.mask, self.teacher_batch = config.mask, config.teacher_batch
        self.is_cached = config.teachers == "cached"
        if self.mask.kind == "attention" and not (self.teachers and self.teachers[0].is_vit):
            raise ValueError(
                "mask.kind: expected tube or random where the first teacher has no attention, found"
                " attention"
            )

    @property
    def teacher_stride(self) -> int:
        """The first teacher sees every so many frames of a batch's clips."""
        return self.teachers[0].stride

    def example_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        size = self.config.encoder.image_size
        frames = self.config.encoder.num_frames * self.stride
        shapes = {"video": jax.ShapeDtypeStruct((batch_size, frames, size, size, 3), jnp.uint8)}
        if self.is_cached:
            with nn.logical_axis_rules(()):
                shapes |= jax.eval_shape(
                    lambda key, batch: self.features(self._init_teachers(key), batch),
                    jax.random.key(0),
                    shapes,
                )
        return shapes

    def init_frozen(self, key: jax.Array) -> PyTree:
        return {} if self.is_cached else self._init_teachers(key)

    def _init_teachers(self, key: jax.Array) -> PyTree:
        return {teacher.name: teacher.init(key) for teacher in self.teachers}

    def check_weights(self) -> None:
        check_teachers(self._running())
        super().check_weights()

    def check_batch(self, rows: int, devices: int) -> None:
        if not self.is_cached:
            check_pass(rows, self.teacher_batch)

    def load_frozen(self, mesh: Mesh, rules: Rules) -> PyTree:
        return load_teachers(self._running(), mesh, rules)

    def targets(self, frozen: PyTree, batch: Batch, key: jax.Array) -> PyTree:
        """Kept tokens `kept` `[B, R]` and, at these, features `[B, K, R, D]` by loss term."""
        grid = self.config.encoder.grid
        drawn = self.mask.draw(key, batch["video"].shape[0], grid, self._per_frame)
        return self.drawn_targets(frozen, batch, drawn)

    def drawn_targets(self, frozen: PyTree, batch: Batch, drawn: Array) -> PyTree:
        """`targets` with the masks' randomness given, as `MaskConfig.draw` draws it."""
        if self.is_cached:
            return cached_targets(self.teachers, self.mask, batch, drawn)
        return masked_targets(
            self.teachers, self.mask, frozen, batch["video"], drawn, self.teacher_batch
        )

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, targets: PyTree, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        video = normalized(batch["video"][:, :: self.stride])
        output = self.module.apply(
            {"params": params},
            video,
            targets["kept"],
            deterministic=False,
            rngs={"dropout": key},
        )
        loss, terms = align(output, targets, self.weights)
        return loss, (terms, extra)

    def features(self, frozen: PyTree, batch: Batch) -> dict[str, Array]:
        """The teachers' features of all tokens, as a batch of cached ones holds them, float32.

        Args:
          frozen: the teachers' variables.
          batch: with `video`.

        Returns:
          `targets/NAME` as `FrozenTeacher.features` says, with the attention of the first.
        """
        video = normalized(batch["video"])
        found: dict[str, Array] = {}
        for teacher in self.teachers:
            grid = self.config.encoder.grid
            found = teacher.features(frozen[teacher.name], video, grid) | found
        return {f"{CACHE}{name}": x for name, x in found.items()}

    def flops(self) -> dict[str, int]:
        """FLOPs of a training step per clip: the student with its gradients, each teacher."""
        grid = self.config.encoder.grid
        kept = jax.ShapeDtypeStruct((1, self.mask.num_kept(grid, self._per_frame)), jnp.int32)
        forward = self.module.flops(self.module.example_inputs()[0], kept)
        flops = {"student": gradient_flops(sum(forward.values()))}
        return flops | {teacher.name: teacher.flops(grid) for teacher in self._running()}

    @property
    def _per_frame(self) -> bool:
        return any(teacher.per_frame for teacher in self.teachers[:1])

    def _running(self) -> Sequence[FrozenTeacher]:
        return () if self.is_cached else self.teachers
