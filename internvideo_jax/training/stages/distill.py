"""Distillation of a large InternVideo2 into a small one.

Source: `run_distill.py` and `engines/engine_for_distill.py` of upstream
`InternVideo2/single_modality`.
"""

import dataclasses
from typing import Literal

from internvideo_jax.models import DistillStudent, DistillStudentConfig
from internvideo_jax.models.teacher import TeacherConfig
from internvideo_jax.training.stages.alignment import AlignmentStage, check_matches
from internvideo_jax.training.stages.teachers import MaskConfig


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Distillation with one video teacher, whose attention guides a mask over the whole clip.

    Attributes:
      student: what is trained.
      teacher: the teacher; it sees the student's frames.
      teacher_path: its saved model: any model with an InternVideo2 encoder of that size.
      teachers: "cached" takes its features from the batch (see `AlignmentStage.features`).
      teacher_batch: clips, over all devices, of one pass of the teacher; None: a whole micro-batch.
      mask: which tokens the student keeps.
      clip_middle_weight: weight of the alignment with the teacher's layers.
      clip_final_weight: weight of that with its pooled feature.
      initial: saved model that the student starts from; None starts from nothing.
    """

    student: DistillStudentConfig
    teacher: TeacherConfig
    teacher_path: str | None = None
    teachers: Literal["frozen", "cached"] = "frozen"
    teacher_batch: int | None = None
    mask: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    clip_middle_weight: float = 1.0
    clip_final_weight: float = 1.0
    initial: str | None = None

    def __post_init__(self) -> None:
        student, teacher = self.student, self.teacher
        check_matches(
            ("teacher.per_frame", False, teacher.per_frame),
            ("layers of the teacher", len(student.clip_layers), len(teacher.layers)),
            ("width of the teacher", student.clip_target_dim, teacher.encoder.width),
            (
                "pooled_dim of the teacher",
                student.clip_final_dim or teacher.encoder.pooled_dim,
                teacher.encoder.pooled_dim,
            ),
            ("token grid of the teacher", student.encoder.grid, teacher.encoder.grid),
            ("frames of the teacher", student.encoder.num_frames, teacher.encoder.num_frames),
        )


class DistillStage(AlignmentStage):
    """Distillation as the loop wants it."""

    def __init__(self, config: DistillConfig) -> None:
        super().__init__(
            DistillStudent(config.student),
            ("teacher", config.teacher),
            None,
            mask=config.mask,
            weights={
                "clip_middle": config.clip_middle_weight,
                "clip_final": config.clip_final_weight if config.student.clip_final_dim else 0.0,
            },
            stride=1,
            teacher_batch=config.teacher_batch,
            teacher_paths={"teacher": config.teacher_path},
            is_cached=config.teachers == "cached",
            initial=config.initial,
        )
