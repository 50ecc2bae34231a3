"""Towers and composites of the InternVideo family, as pure functions of (variables, inputs)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax

from internvideo_jax.kernels.attention.request import current_platform
from internvideo_jax.models.stage1 import (
    DistillStudent,
    DistillStudentConfig,
    Stage1Student,
    Stage1StudentConfig,
)
from internvideo_jax.models.teacher import (
    Teacher,
    TeacherConfig,
    VideoMAETeacher,
    VideoMAETeacherConfig,
)
from internvideo_jax.models.video_classifier import VideoClassifier, VideoClassifierConfig
from internvideo_jax.models.video_vit import VideoViT, VideoViTConfig, VideoViTOutput
from internvideo_jax.models.videomae import VideoMAE, VideoMAEConfig


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A kind of model: its config dataclass and its module, built as `module_cls(config)`."""

    config_cls: type
    module_cls: type[nn.Module]


ARCHITECTURES: dict[str, Architecture] = {
    "video_vit": Architecture(VideoViTConfig, VideoViT),
    "video_classifier": Architecture(VideoClassifierConfig, VideoClassifier),
    "stage1_student": Architecture(Stage1StudentConfig, Stage1Student),
    "distill_student": Architecture(DistillStudentConfig, DistillStudent),
    "teacher": Architecture(TeacherConfig, Teacher),
    "videomae": Architecture(VideoMAEConfig, VideoMAE),
    "videomae_teacher": Architecture(VideoMAETeacherConfig, VideoMAETeacher),
}


def abstract_variables(module: nn.Module, *, boxed: bool = False) -> dict[str, Any]:
    """Shapes and dtypes of a model's variables; nothing is allocated.

    Args:
      module: one of the modules of `ARCHITECTURES`.
      boxed: keep the logical axis names (`flax.linen.LogicallyPartitioned`) around the leaves.

    Returns:
      `{"params": ..., ["batch_stats": ...]}` with `jax.ShapeDtypeStruct` leaves.
    """
    # The single example need not fit the current mesh.
    with nn.logical_axis_rules(()):
        variables = jax.eval_shape(module.init, jax.random.key(0), *module.example_inputs())
    return variables if boxed else nn.unbox(variables)


def video_encoder(module: nn.Module, variables: dict[str, Any]) -> tuple[VideoViT, dict[str, Any]]:
    """The video ViT inside a model, with its variables.

    Raises:
      ValueError: the model has none.
    """
    if isinstance(module, VideoViT):
        return module, {"params": variables["params"]}
    config = getattr(module.config, "encoder", None)
    if not isinstance(config, VideoViTConfig):
        raise ValueError(
            f"expected a model with an InternVideo2 video encoder, found {type(module).__name__};"
            " pass an encoder, a classifier, a student or an InternVideo2 teacher"
        )
    return VideoViT(config), {"params": variables["params"]["encoder"]}


def encode(
    module: nn.Module,
    variables: dict[str, Any],
    video: jax.Array,
    kept: jax.Array | None = None,
    **options: Any,
) -> VideoViTOutput:
    """Runs the video encoder inside any model, without drop path.

    A CPU takes clips one by one: the activations of one stay in its caches, which is faster than
    all at once and takes less memory (docs/benchmarks.md).

    Args:
      module: a model with a video encoder.
      variables: its variables.
      video: normalised clips `[B, T, H, W, 3]`.
      kept: tokens to keep `[B, K]`, or None for all, as in `VideoViT.__call__`.
      options: the others of `VideoViT.__call__`.
    """
    encoder, encoder_variables = video_encoder(module, variables)
    forward: Any = functools.partial(encoder.apply, encoder_variables, **options)
    is_split = not jax.sharding.get_abstract_mesh().empty
    if len(video) == 1 or is_split or current_platform() != "cpu":
        output: VideoViTOutput = forward(video, kept)
        return output
    clips = jax.tree.map(lambda x: x[:, None], (video, kept))
    outputs = jax.lax.map(lambda clip: forward(*clip), clips)
    attention = outputs.pooler_attention
    return VideoViTOutput(
        outputs.tokens[:, 0],
        outputs.pooled[:, 0],
        outputs.hidden_states[:, :, 0].swapaxes(0, 1),
        None if attention is None else attention[:, 0],
    )
