"""What pre-training and distillation share: a masked student aligned with frozen teachers."""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from internvideo_jax import saved_model
from internvideo_jax.models import DistillStudent, Stage1Student, build, gradient_flops
from internvideo_jax.models.teacher import TeacherConfig, VideoMAETeacherConfig
from internvideo_jax.objectives.distillation import distillation_loss
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.stage import Batch, PyTree, Stage, Variables
from internvideo_jax.training.stages import teachers
from internvideo_jax.training.stages.clips import map_clips, normalized, resized
from internvideo_jax.training.stages.weights import load_weights

log = logging.getLogger(__name__)

# Where a batch holds teachers' features that were computed beforehand.
CACHE = "targets/"


class AlignmentStage(Stage):
    """Trains a student on the tokens that a mask keeps to give its teachers' features there.

    A batch holds `video` `[B, T, S, S, 3]`: uint8 pixels, or floats that are normalised already.
    With cached teachers it also holds what `features` gives, and no teacher runs; the clips must
    then be those that the features are of, augmented no further.
    """

    def __init__(
        self,
        student: Stage1Student | DistillStudent,
        video_vit: tuple[str, TeacherConfig],
        videomae: tuple[str, VideoMAETeacherConfig] | None,
        *,
        mask: teachers.MaskConfig,
        weights: Mapping[str, float],
        stride: int,
        teacher_batch: int | None,
        teacher_paths: Mapping[str, str | None],
        is_cached: bool,
        initial: str | None,
    ) -> None:
        """Sets up the stage.

        Args:
          student: the module to train.
          video_vit: name and config of the teacher that sees the student's frames and whose
            attention may guide the mask.
          videomae: name and config of the teacher that sees all frames, if any.
          mask: which tokens the student keeps.
          weights: weight of each term of `objectives.distillation.distillation_loss`.
          stride: the student sees every `stride`-th frame.
          teacher_batch: clips of one pass of the teachers, over all devices; None: all.
          teacher_paths: saved models of the teachers by name.
          is_cached: whether features come with the batch.
          initial: saved model that the student starts from; None starts from nothing.
        """
        self.module = student
        self.config = student.config
        self.video_vit_name, self.video_vit = video_vit
        self.videomae_name = videomae[0] if videomae else ""
        self.videomae = videomae[1] if videomae else None
        self.mask, self.weights, self.stride = mask, dict(weights), stride
        self.teacher_batch, self.teacher_paths = teacher_batch, teacher_paths
        self.is_cached, self.initial = is_cached, initial
        encoder = self.config.encoder
        # An image tower takes one frame of each of the student's tubelets.
        self.teacher_stride = stride * (encoder.tubelet_size if self.video_vit.per_frame else 1)
        self.preprocessing = VideoPreprocessing(
            image_size=encoder.image_size, num_frames=encoder.num_frames
        )

    def example_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        size = self.config.encoder.image_size
        frames = self.config.encoder.num_frames * self.stride
        video = jax.ShapeDtypeStruct((batch_size, frames, size, size, 3), jnp.uint8)
        if not self.is_cached:
            return {"video": video}
        return {"video": video, **self._feature_shapes(batch_size)}

    def init(self, key: jax.Array) -> Variables:
        inputs = (jnp.zeros(x.shape, x.dtype) for x in self.module.example_inputs())
        return dict(self.module.init(key, *inputs))

    def init_frozen(self, key: jax.Array) -> PyTree:
        return {name: teachers.init_teacher(c, key) for name, c in self._teachers().items()}

    def load_frozen(self, mesh: Mesh, rules: Rules) -> PyTree:
        return teachers.load_teachers(self._teachers(), self.teacher_paths, mesh, rules)

    def load_initial(self, variables: Variables) -> Variables:
        if self.initial is None:
            return variables
        loaded = load_weights(
            self.initial,
            self.config,
            variables,
            dtype="float32",
            may_start_afresh=lambda path: not path.startswith("params/encoder/"),
        )
        log.info("student: %s", loaded.summary)
        return loaded.variables

    def targets(self, frozen: PyTree, batch: Batch, key: jax.Array) -> PyTree:
        """Kept tokens `kept` `[B, R]` and, at these, features `[B, K, R, D]` by loss term."""
        drawn = teachers.draw_mask(
            self.mask, key, batch["video"].shape[0], self.config.encoder.grid, self._per_frame
        )
        return self.drawn_targets(frozen, batch, drawn)

    def drawn_targets(self, frozen: PyTree, batch: Batch, drawn: Array) -> PyTree:
        """`targets` with the masks' randomness given, as `teachers.draw_mask` draws it."""
        if self.is_cached:
            return self._cached_targets(batch, drawn)
        return map_clips(
            functools.partial(self._teacher_targets, frozen),
            {"video": batch["video"], "drawn": drawn},
            self.teacher_batch,
        )

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, targets: PyTree, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        video = normalized(batch["video"][:, :: self.stride], self.preprocessing)
        output: Any = self.module.apply(
            {"params": params},
            video,
            targets["kept"],
            deterministic=False,
            rngs={"dropout": key},
        )
        # Students give layers first, targets have clips first.
        wanted = {
            name: x.swapaxes(0, 1) if x.ndim == 4 else x
            for name, x in targets.items()
            if name in self.weights
        }
        student = {name: getattr(output, name) for name in wanted}
        loss, terms = distillation_loss(student, wanted, self.weights)
        return loss, (terms, extra)

    def features(self, frozen: PyTree, batch: Batch) -> dict[str, Array]:
        """The teachers' features of all tokens, as a batch of cached ones holds them, float32.

        Args:
          frozen: the teachers' variables.
          batch: with `video`.

        Returns:
          `targets/clip_middle` `[B, K, 1 + N, D]`, `targets/clip_final` `[B, P]`,
          `targets/attention` `[B, rows, N / rows]`, and with a VideoMAE teacher `targets/mae`
          `[B, K', N, D']`.
        """
        video = normalized(batch["video"], self.preprocessing)
        clip_video = resized(video[:, :: self.teacher_stride], self.video_vit.encoder.image_size)
        output: Any = teachers.teacher_module(self.video_vit).apply(
            frozen[self.video_vit_name], clip_video
        )
        features = {
            "clip_middle": output.middle.swapaxes(0, 1),
            "clip_final": output.final,
            "attention": output.attention.reshape(len(video), -1, output.attention.shape[-1]),
        }
        if self.videomae is not None:
            mae_video = resized(video, self.videomae.encoder.image_size)
            mae: Any = teachers.teacher_module(self.videomae).apply(
                frozen[self.videomae_name], mae_video
            )
            features["mae"] = mae.swapaxes(0, 1)
        return {f"{CACHE}{name}": x for name, x in features.items()}

    def flops(self) -> dict[str, int]:
        """FLOPs of a training step per clip: the student with its gradients, each teacher."""
        grid = self.config.encoder.grid
        kept = teachers.num_kept_tokens(self.mask, grid, self._per_frame)
        flops = {"student": gradient_flops(sum(self.module.flops(kept).values()))}
        for name, config in self._teachers().items():
            passes = grid[0] if getattr(config, "per_frame", False) else 1
            flops[name] = passes * sum(build(config).flops().values())
        return flops

    def save(self, variables: Variables, directory: Path) -> None:
        config = dataclasses.replace(self.config, encoder=portable(self.config.encoder))
        architecture = "stage1_student" if self.videomae else "distill_student"
        saved_model.save(
            directory, architecture, config, Preprocessing(self.preprocessing), variables
        )

    @property
    def _per_frame(self) -> bool:
        return self.video_vit.per_frame

    def _teachers(self) -> dict[str, teachers.AnyTeacherConfig]:
        if self.is_cached:
            return {}
        found: dict[str, teachers.AnyTeacherConfig] = {self.video_vit_name: self.video_vit}
        if self.videomae is not None:
            found[self.videomae_name] = self.videomae
        return found

    def _teacher_targets(self, frozen: PyTree, clips: PyTree) -> dict[str, Array]:
        """Targets of some clips: first the teacher whose attention makes the mask."""
        video = normalized(clips["video"], self.preprocessing)
        encoded = teachers.encode_clips(
            self.video_vit,
            frozen[self.video_vit_name],
            resized(video[:, :: self.teacher_stride], self.video_vit.encoder.image_size),
        )
        assert encoded.pooler_attention is not None
        kept = teachers.kept_tokens(self.mask, clips["drawn"], encoded.pooler_attention[:, 1:])
        features = teachers.video_vit_features(self.video_vit, encoded, kept)
        if self.videomae is not None:
            mae_video = resized(video, self.videomae.encoder.image_size)
            features |= teachers.videomae_features(
                self.videomae, frozen[self.videomae_name], mae_video, kept
            )
        return {"kept": kept, **features}

    def _cached_targets(self, batch: Batch, drawn: Array) -> dict[str, Array]:
        """Targets of clips whose features come with them."""
        attention = batch[f"{CACHE}attention"].astype(jnp.float32)
        kept = teachers.kept_tokens(self.mask, drawn, attention.reshape(-1, attention.shape[-1]))
        targets = {
            "kept": kept,
            "clip_middle": _rows(batch[f"{CACHE}clip_middle"], kept),
            "clip_final": batch[f"{CACHE}clip_final"].astype(jnp.float32),
        }
        if self.videomae is not None:
            targets["mae"] = _rows(batch[f"{CACHE}mae"], kept[:, 1:] - 1)
        return targets

    def _feature_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        t, h, w = self.config.encoder.grid
        tokens, config = t * h * w, self.video_vit
        shapes = {
            "clip_middle": (len(config.layers), 1 + tokens, config.encoder.width),
            "clip_final": (config.encoder.pooled_dim,),
            "attention": (t, h * w) if self._per_frame else (1, tokens),
        }
        if self.videomae is not None:
            shapes["mae"] = (len(self.videomae.layers), tokens, self.videomae.encoder.width)
        return {
            f"{CACHE}{name}": jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
            for name, shape in shapes.items()
        }


def check_matches(*expectations: tuple[str, object, object]) -> None:
    """Raises ValueError naming every (what, expected, found) that is not as expected.

    Students and teachers must agree on layers, widths and token grids.
    """
    wrong = [
        f"{what}: expected {wanted}, found {found}"
        for what, wanted, found in expectations
        if wanted != found
    ]
    if wrong:
        raise ValueError(
            "student and teachers do not match: "
            + "; ".join(wrong)
            + "; change the student's decoders or the teacher"
        )


def portable(encoder: Any) -> Any:
    """An encoder's config without what only its training machine needed."""
    return dataclasses.replace(encoder, remat="none", dtype="float32")


def _rows(features: Array, rows: Int[Array, "B R"]) -> Array:
    """Rows `[B, K, R, D]` of each clip's features `[B, K, N, D]`, alike for the K layers."""
    return jnp.take_along_axis(features.astype(jnp.float32), rows[:, None, :, None], axis=2)
