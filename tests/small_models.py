"""Small models of each architecture, for tests of what lies around them."""

from typing import Any

from internvideo_jax import models

ENCODER = models.VideoViTConfig(
    width=32,
    depth=2,
    num_heads=2,
    mlp_dim=48,
    patch_size=4,
    image_size=8,
    num_frames=2,
    pooled_dim=8,
    pooler_heads=4,
)
VIDEOMAE = models.VideoMAEConfig(
    width=32, depth=2, num_heads=2, mlp_dim=48, patch_size=4, image_size=8, num_frames=4
)
CONFIGS: dict[str, Any] = {
    "video_vit": ENCODER,
    "video_classifier": models.VideoClassifierConfig(ENCODER, num_classes=5, head="attentive"),
    "stage1_student": models.Stage1StudentConfig(ENCODER, (0, 1), (1,), 12, 8, 20),
    "distill_student": models.DistillStudentConfig(ENCODER, (0, 1), 12, 8),
    "teacher": models.TeacherConfig(ENCODER, (0, 1)),
    "videomae": VIDEOMAE,
    "videomae_teacher": models.VideoMAETeacherConfig(VIDEOMAE, (0, 1)),
}
