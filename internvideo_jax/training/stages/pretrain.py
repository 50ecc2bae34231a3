"""Stage-1 pre-training: a masked student follows InternVL-6B and VideoMAEv2-g.

Source: `run_pretraining.py` and `engines/engine_for_pretraining.py` of upstream
`InternVideo2/single_modality`.
"""

import dataclasses
from typing import Literal

from internvideo_jax.models import Stage1Student, Stage1StudentConfig
from internvideo_jax.models.teacher import TeacherConfig, VideoMAETeacherConfig
from internvideo_jax.training.stages.alignment import AlignmentStage, check_matches
from internvideo_jax.training.stages.teachers import MaskConfig


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pre-training with two teachers.

    Attributes:
      student: what is trained.
      clip_teacher: the image tower that sees the student's frames one by one; the attention of its
        pooler guides the mask.
      mae_teacher: the video teacher, which sees all frames.
      clip_teacher_path: saved model of the one.
      mae_teacher_path: saved model of the other.
      teachers: "cached" takes their features from the batch (see `AlignmentStage.features`).
      teacher_batch: clips, over all devices, of one pass of the teachers; None: a whole
        micro-batch. Full-token features live for one pass only.
      mask: which tokens the student keeps.
      clip_middle_weight: weight of the alignment with the image tower's layers.
      clip_final_weight: weight of that with its pooled feature.
      mae_weight: weight of that with the video teacher's layers.
      initial: saved model that the student starts from; None starts from nothing.
    """

    student: Stage1StudentConfig
    clip_teacher: TeacherConfig
    mae_teacher: VideoMAETeacherConfig
    clip_teacher_path: str | None = None
    mae_teacher_path: str | None = None
    teachers: Literal["frozen", "cached"] = "frozen"
    teacher_batch: int | None = None
    mask: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    clip_middle_weight: float = 1.0
    clip_final_weight: float = 1.0
    mae_weight: float = 1.0
    initial: str | None = None

    @property
    def stride(self) -> int:
        """The student sees every `stride`-th frame, so that the teachers' tokens lie as its own."""
        return self.mae_teacher.encoder.tubelet_size // self.student.encoder.tubelet_size

    def __post_init__(self) -> None:
        student, clip, mae = self.student, self.clip_teacher, self.mae_teacher
        encoder = student.encoder
        # The image tower sees one frame of each of the student's tubelets.
        clip_grid = (encoder.grid[0] * clip.encoder.grid[0], *clip.encoder.grid[1:])
        check_matches(
            ("clip_teacher.per_frame", True, clip.per_frame),
            ("layers of clip_teacher", len(student.clip_layers), len(clip.layers)),
            ("width of clip_teacher", student.clip_target_dim, clip.encoder.width),
            (
                "pooled_dim of clip_teacher",
                student.clip_final_dim or clip.encoder.pooled_dim,
                clip.encoder.pooled_dim,
            ),
            ("token grid of clip_teacher", encoder.grid, clip_grid),
            ("layers of mae_teacher", len(student.mae_layers), len(mae.layers)),
            ("width of mae_teacher", student.mae_target_dim, mae.encoder.width),
            ("token grid of mae_teacher", encoder.grid, mae.encoder.grid),
            ("frames of mae_teacher", encoder.num_frames * self.stride, mae.encoder.num_frames),
        )


class PretrainStage(AlignmentStage):
    """Pre-training as the loop wants it."""

    def __init__(self, config: PretrainConfig) -> None:
        weights = {
            "clip_middle": config.clip_middle_weight,
            # A student without final decoder has nothing to align with the pooled feature.
            "clip_final": config.clip_final_weight if config.student.clip_final_dim else 0.0,
            "mae": config.mae_weight,
        }
        super().__init__(
            Stage1Student(config.student),
            ("clip_teacher", config.clip_teacher),
            ("mae_teacher", config.mae_teacher),
            mask=config.mask,
            weights=weights,
            stride=config.stride,
            teacher_batch=config.teacher_batch,
            teacher_paths={
                "clip_teacher": config.clip_teacher_path,
                "mae_teacher": config.mae_teacher_path,
            },
            is_cached=config.teachers == "cached",
            initial=config.initial,
        )
