"""Distillation of a large InternVideo2 into a small one.

Source: `run_distill.py` and `engines/engine_for_distill.py` of upstream
`InternVideo2/single_modality`.
"""

import dataclasses

from internvideo_jax.models import DistillStudentConfig
from internvideo_jax.models.teacher import TeacherConfig
from internvideo_jax.training.stages.alignment import AlignmentConfig
from internvideo_jax.training.stages.teachers import FrozenTeacher


@dataclasses.dataclass(frozen=True)
class DistillConfig(AlignmentConfig):
    """Distillation with one video teacher, whose attention guides a mask over the whole clip.

    Attributes:
      teacher: the teacher; it sees the student's frames.
      teacher_path: its saved model: any model with an InternVideo2 encoder of that size.
    """

    student: DistillStudentConfig
    teacher: TeacherConfig
    teacher_path: str | None = None

    def frozen_teachers(self) -> tuple[FrozenTeacher, ...]:
        stride = self.student.encoder.tubelet_size if self.teacher.per_frame else 1
        return (FrozenTeacher("teacher", self.teacher, self.teacher_path, stride),)
