"""Features of decoded clips: what stage 1 aligns with, and what probes read."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax import models, saved_model
from internvideo_jax.models import Teacher, TeacherConfig, VideoViT
from internvideo_jax.preprocessing import VideoPreprocessing, normalize
from internvideo_jax.training.stages.pretrain import PretrainStage

_BATCH = 50


def teacher_features(
    stage: PretrainStage, image_teacher: Path, video_teacher: Path, video: np.ndarray
) -> dict[str, np.ndarray]:
    """The fields of a batch that `PretrainStage` takes from a cache, for all clips.

    The image teacher sees the first frame of each tubelet, which gives it the student's tokens. Of
    each token's feature its mean over the clips is taken away before it is normalised: small
    teachers' features have so much in common that a constant would come close to all of them.

    Args:
      stage: that takes them.
      image_teacher: saved model of the one.
      video_teacher: saved model of the other, which takes the place of a VideoMAE.
      video: uint8 `[N, T, S, S, 3]`.
    """
    student, videomae = stage.config.encoder, stage.teachers[1].config
    image_config = dataclasses.replace(stage.teachers[0].config, normalization="none")
    video_config = TeacherConfig(student, videomae.layers, normalization="none")

    @functools.partial(jax.jit, static_argnums=0)
    def encode(teacher: nn.Module, variables: Any, frames: jax.Array) -> Any:
        return teacher.apply(variables, normalize(frames, VideoPreprocessing()))

    def run(teacher_config: TeacherConfig, path: Path, stride: int) -> dict[str, np.ndarray]:
        _, params = models.video_encoder(*_load(path))
        variables = {"params": {"encoder": params["params"]}}
        rows = []
        for clips in _parts(video[:, ::stride]):
            output = encode(Teacher(teacher_config), variables, clips)
            attention = output.attention.reshape(len(clips), -1, output.attention.shape[-1])
            rows.append(
                {
                    "middle": output.middle.swapaxes(0, 1),
                    "final": output.final,
                    "attention": attention,
                }
            )
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    image = run(image_config, image_teacher, student.tubelet_size)
    return {
        "targets/clip_middle": _centred(image["middle"]),
        "targets/clip_final": _centred(image["final"]),
        "targets/attention": image["attention"],
        # A VideoMAE has no class token.
        "targets/mae": _centred(run(video_config, video_teacher, 1)["middle"][:, :, 1:]),
    }


def probe_features(path: Path, video: np.ndarray) -> np.ndarray:
    """What a probe reads of clips: class token, mean of the other tokens, pooled feature.

    An encoder of single frames gives the mean over the frames.

    Args:
      path: a saved model with a video encoder.
      video: uint8 `[N, T, S, S, 3]`.

    Returns:
      float32 `[N, F]`.
    """
    encoder, variables = models.video_encoder(*_load(path))
    return np.concatenate([np.asarray(_read(encoder, variables, v)) for v in _parts(video)])


def class_scores(path: Path, video: np.ndarray) -> np.ndarray:
    """Logits `[N, C]` of a saved classifier, averaged over the frames by one of single frames."""
    module, variables = _load(path)
    return np.concatenate([np.asarray(_logits(module, variables, v)) for v in _parts(video)])


def _centred(features: np.ndarray) -> np.ndarray:
    """Unit vectors from the mean over the clips, `[N, ..., D]`."""
    features = features - features.mean(0)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def _load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    model = saved_model.load(path)
    return model.module, model.variables


@functools.partial(jax.jit, static_argnums=0)
def _read(encoder: VideoViT, variables: Any, video: jax.Array) -> jax.Array:
    output: Any = encoder.apply(variables, _inputs(video, encoder.config.num_frames))
    features = jnp.concatenate(
        [output.tokens[:, 0], output.tokens[:, 1:].mean(1), output.pooled], axis=-1
    )
    return features.reshape(len(video), -1, features.shape[-1]).mean(1)


@functools.partial(jax.jit, static_argnums=0)
def _logits(classifier: Any, variables: Any, video: jax.Array) -> jax.Array:
    inputs = _inputs(video, classifier.config.encoder.num_frames)
    logits: jax.Array = classifier.apply(variables, inputs).logits
    return logits.reshape(len(video), -1, logits.shape[-1]).mean(1)


def _inputs(video: jax.Array, num_frames: int) -> jax.Array:
    """Normalised clips of as many frames as the model takes."""
    video = normalize(video, VideoPreprocessing())
    return video.reshape(-1, num_frames, *video.shape[2:])


def _parts(video: np.ndarray) -> Iterator[np.ndarray]:
    return (video[start : start + _BATCH] for start in range(0, len(video), _BATCH))
