"""Stage-1 pre-training: a masked student follows InternVL-6B and VideoMAEv2-g.

Source: `run_pretraining.py` and `engines/engine_for_pretraining.py` of upstream
`InternVideo2/single_modality`.
"""

import dataclasses

from internvideo_jax.models import Stage1StudentConfig
from internvideo_jax.models.teacher import TeacherConfig, VideoMAETeacherConfig
from internvideo_jax.training.stages.alignment import AlignmentConfig
from internvideo_jax.training.stages.teachers import FrozenTeacher


@dataclasses.dataclass(frozen=True)
class PretrainConfig(AlignmentConfig):
    """Pre-training with two teachers.

    Attributes:
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

    @property
    def weights(self) -> dict[str, float]:
        return super().weights | {"mae": self.mae_weight}

    def frozen_teachers(self) -> tuple[FrozenTeacher, ...]:
        # An image tower takes one frame of each of the student's tubelets.
        per_token = self.student.encoder.tubelet_size if self.clip_teacher.per_frame else 1
        stride, clip_path, mae_path = self.stride, self.clip_teacher_path, self.mae_teacher_path
        return (
            FrozenTeacher("clip_teacher", self.clip_teacher, clip_path, stride * per_token),
            FrozenTeacher("mae_teacher", self.mae_teacher, mae_path, 1, "mae"),
        )
