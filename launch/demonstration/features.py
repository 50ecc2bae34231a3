"""Features of clips: what stage 1 aligns with, and what probes read."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax import models, saved_model
from internvideo_jax.configs.demo import common
from internvideo_jax.models import Teacher, TeacherConfig
from internvideo_jax.preprocessing import VideoPreprocessing, normalize

_BATCH = 50


def teacher_features(
    size: common.Size,
    image_teacher: Path,
    video_teacher: Path,
    video: np.ndarray,
    adapt_image: Callable[[Any], Any] = lambda variables: variables,
) -> dict[str, np.ndarray]:
    """What stage 1 takes as `targets/NAME`, for all clips.

    The image teacher sees the first frame of each tubelet, which gives it the student's tokens. Of
    each token's feature its mean over the clips is taken away before it is normalised: small
    teachers' features have so much in common that a constant would come close to all of them.

    Args:
      size: of the demo.
      image_teacher: saved model of the one.
      video_teacher: saved model of the other, which takes the place of a VideoMAE.
      video: uint8 `[N, T, S, S, 3]`.
      adapt_image: makes the image teacher's variables others.
    """
    encoder, layers = common.encoder(size), common.aligned_layers(size)

    def load(path: Path) -> dict[str, Any]:
        _, variables = models.video_encoder(*_load(path))
        return {"params": {"encoder": variables["params"]}}

    def run(config: TeacherConfig, variables: Any, video: np.ndarray) -> dict[str, np.ndarray]:
        return _by_parts(_targets, Teacher(config), variables, video)

    image = run(
        TeacherConfig(common.image_encoder(size), layers, per_frame=True, normalization="none"),
        adapt_image(load(image_teacher)),
        video[:, :: encoder.tubelet_size],
    )
    clip = run(TeacherConfig(encoder, layers, normalization="none"), load(video_teacher), video)
    return {
        "clip_middle": _centred(image["middle"]),
        "clip_final": _centred(image["final"]),
        "attention": image["attention"],
        # A VideoMAE has no class token.
        "mae": _centred(clip["middle"][:, :, 1:]),
    }


def save(targets: Mapping[str, np.ndarray], folder: Path) -> str:
    """Writes features as `data.features_dir` takes them; returns the folder."""
    folder.mkdir(exist_ok=True)
    for name, array in targets.items():
        np.save(folder / f"{name}.npy", array)
    return str(folder)


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
    return _by_parts(_probed, encoder, variables, video)


def class_scores(path: Path, video: np.ndarray) -> np.ndarray:
    """Logits `[N, C]` of a saved classifier, averaged over the frames by one of single frames."""
    return _by_parts(_logits, *_load(path), video)


def _targets(teacher: nn.Module, variables: Any, video: jax.Array) -> dict[str, jax.Array]:
    output: Any = teacher.apply(variables, video)
    attention = output.attention.reshape(len(video), -1, output.attention.shape[-1])
    return {
        "middle": output.middle.swapaxes(0, 1),
        "final": output.final,
        "attention": attention,
    }


def _probed(encoder: Any, variables: Any, video: jax.Array) -> jax.Array:
    output = encoder.apply(variables, _of_length(video, encoder.config.num_frames))
    parts = [output.tokens[:, 0], output.tokens[:, 1:].mean(1), output.pooled]
    return _mean_of_clips(jnp.concatenate(parts, axis=-1), len(video))


def _logits(classifier: Any, variables: Any, video: jax.Array) -> jax.Array:
    frames = _of_length(video, classifier.config.encoder.num_frames)
    return _mean_of_clips(classifier.apply(variables, frames).logits, len(video))


def _of_length(video: jax.Array, num_frames: int) -> jax.Array:
    """Clips cut into as many frames as the model takes."""
    return video.reshape(-1, num_frames, *video.shape[2:])


def _mean_of_clips(rows: jax.Array, clips: int) -> jax.Array:
    return rows.reshape(clips, -1, rows.shape[-1]).mean(1)


def _centred(features: np.ndarray) -> np.ndarray:
    """Unit vectors from the mean over the clips, `[N, ..., D]`."""
    features = features - features.mean(0)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def _load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    model = saved_model.load(path)
    return model.module, model.variables


def _by_parts(
    function: Callable[..., Any], module: nn.Module, variables: Any, video: np.ndarray
) -> Any:
    """What a function of module, variables and normalised clips gives, some clips at a time."""
    parts = (video[start : start + _BATCH] for start in range(0, len(video), _BATCH))
    rows = [jax.device_get(_run(function, module, variables, part)) for part in parts]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(function: Callable[..., Any], module: nn.Module, variables: Any, video: jax.Array) -> Any:
    return function(module, variables, normalize(video, VideoPreprocessing()))
