"""Distillation of a large InternVideo2 into a small one.

Source: `run_distill.py` and `engines/engine_for_distill.py` of upstream
`InternVideo2/single_modality`.
"""

import dataclasses

from internvideo_jax.models import DistillStudent, DistillStudentConfig
from internvideo_jax.models.teacher import TeacherConfig
from internvideo_jax.training.stages.alignment import (
    AlignmentConfig,
    AlignmentStage,
    check_matches,
)
from internvideo_jax.training.stages.teachers import FrozenTeacher


@dataclasses.dataclass(frozen=True)
class DistillConfig(AlignmentConfig):
    """Distillation with one video teacher, whose attention guides a mask over the whole clip.

    Attributes:
      student: what is trained.
      teacher: the teacher; it sees the student's frames.
      teacher_path: its saved model: any model with an InternVideo2 encoder of that size.
    """

    student: DistillStudentConfig
    teacher: TeacherConfig
    teacher_path: str | None = None

    def frozen_teacher(self) -> FrozenTeacher:
        """The teacher as the stage runs it."""
        stride = self.student.encoder.tubelet_size if self.teacher.per_frame else 1
        return FrozenTeacher(
            "teacher", self.teacher, self.teacher_path, stride, "clip_middle", "clip_final"
        )

    def __post_init__(self) -> None:
        s = self.student
        teacher = self.frozen_teacher(), s.clip_layers, s.clip_target_dim, s.clip_final_dim
        check_matches(s.encoder, s.encoder.num_frames, teacher)


class DistillStage(AlignmentStage):
    """Distillation as the loop wants it."""

    def __init__(self, config: DistillConfig) -> None:
        weights = {
            "clip_middle": config.clip_middle_weight,
            "clip_final": config.clip_final_weight,
        }
        student = DistillStudent(config.student)
        super().__init__(config, student, [config.frozen_teacher()], weights)
