"""Stage-1 pre-training: a masked student follows InternVL-6B and VideoMAEv2-g.

Source: `run_pretraining.py` and `engines/engine_for_pretraining.py` of upstream
`InternVideo2/single_modality`.
"""

import dataclasses

from internvideo_jax.models import Stage1Student, Stage1StudentConfig
from internvideo_jax.models.teacher import TeacherConfig, VideoMAETeacherConfig
from internvideo_jax.training.stages.alignment import (
    AlignmentConfig,
    AlignmentStage,
    check_matches,
)
from internvideo_jax.training.stages.teachers import FrozenTeacher


@dataclasses.dataclass(frozen=True)
class PretrainConfig(AlignmentConfig):
    """Pre-training with two teachers.

    Attributes:
      student: what is trained.
      clip_teacher: the image tower that sees the student's frames one by one; the attention of its
        pooler guides the mask.
      mae_teacher: the video teacher, which sees all frames.
      clip_teacher_path: saved model of the one.
      mae_teacher_path: saved model of the other.
      mae_weight: weight of the alignment with the video teacher's layers.
    """

    student: Stage1StudentConfig
    clip_teacher: TeacherConfig
    mae_teacher: VideoMAETeacherConfig
    clip_teacher_path: str | None = None
    mae_teacher_path: str | None = None
    mae_weight: float = 1.0

    @property
    def stride(self) -> int:
        """The student sees every `stride`-th frame, so that the teachers' tokens lie as its own."""
        own = self.student.encoder.tubelet_size
        return max(self.mae_teacher.encoder.tubelet_size // own, 1)

    def frozen_teachers(self) -> tuple[FrozenTeacher, FrozenTeacher]:
        """The teachers as the stage runs them."""
        # An image tower takes one frame of each of the student's tubelets.
        per_token = self.student.encoder.tubelet_size if self.clip_teacher.per_frame else 1
        return (
            FrozenTeacher(
                "clip_teacher",
                self.clip_teacher,
                self.clip_teacher_path,
                self.stride * per_token,
                "clip_middle",
                "clip_final",
            ),
            FrozenTeacher("mae_teacher", self.mae_teacher, self.mae_teacher_path, 1, "mae"),
        )

    def __post_init__(self) -> None:
        s = self.student
        clip, mae = self.frozen_teachers()
        check_matches(
            s.encoder,
            s.encoder.num_frames * self.stride,
            (clip, s.clip_layers, s.clip_target_dim, s.clip_final_dim),
            (mae, s.mae_layers, s.mae_target_dim, 0),
        )


class PretrainStage(AlignmentStage):
    """Pre-training as the loop wants it."""

    def __init__(self, config: PretrainConfig) -> None:
        weights = {
            "clip_middle": config.clip_middle_weight,
            "clip_final": config.clip_final_weight,
            "mae": config.mae_weight,
        }
        student, teachers = Stage1Student(config.student), config.frozen_teachers()
        super().__init__(config, student, teachers, weights, stride=config.stride)
