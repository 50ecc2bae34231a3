"""Frozen teachers of stage 1: their masks and features, and their weights in half precision.

The teacher pass is the larger part of a step. Of the target layers' tokens only those rows that the
student keeps are normalised and stay; the full layers live in the compute dtype until the mask is
drawn. Features of one clip lie together, `[B, K, ...]`, as they would in a cache.

Source: `engines/engine_for_pretraining.py` and `engine_for_distill.py` of upstream
`InternVideo2/single_modality`.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from internvideo_jax.models import Teacher, VideoMAE, VideoMAETeacher, VideoViT
from internvideo_jax.models.teacher import TeacherConfig, VideoMAETeacherConfig
from internvideo_jax.models.video_vit import VideoViTOutput
from internvideo_jax.nn.normalization import l2_normalize
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.parallel.sharding import abstract_params
from internvideo_jax.training.masking import attention_guided_kept, num_kept, random_kept, tube_kept
from internvideo_jax.training.stages.weights import load_weights

log = logging.getLogger(__name__)

PyTree = Any
Mask = Literal["attention", "tube", "random"]
AnyTeacherConfig = TeacherConfig | VideoMAETeacherConfig


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """Which tokens a student keeps.

    Attributes:
      kind: drawn in proportion to the teacher's attention, the same places in all frames, or
        anywhere in the clip.
      ratio: share of the tokens that are masked.
    """

    kind: Mask = "attention"
    ratio: float = 0.8


def draw_mask(
    mask: MaskConfig, key: jax.Array, batch_size: int, grid: tuple[int, int, int], per_frame: bool
) -> Array:
    """All the randomness of a batch's masks, one row for each clip.

    Args:
      mask: kind and ratio.
      key: random key.
      batch_size: B.
      grid: the student's tokens along (time, height, width).
      per_frame: whether attention masks are drawn frame by frame or over the whole clip.

    Returns:
      Exp(1) draws `[B, T, h*w]` or `[B, 1, T*h*w]` for attention masks, else the kept tokens
      `[B, R]`.
    """
    t, h, w = grid
    if mask.kind == "tube":
        return tube_kept(key, batch_size, grid, mask.ratio)
    if mask.kind == "random":
        return random_kept(key, batch_size, t * h * w, mask.ratio)
    rows = (t, h * w) if per_frame else (1, t * h * w)
    return jax.random.exponential(key, (batch_size, *rows))


def num_kept_tokens(mask: MaskConfig, grid: tuple[int, int, int], per_frame: bool) -> int:
    """Tokens that such a mask keeps of a clip, class token included; arguments as `draw_mask`."""
    t, h, w = grid
    if mask.kind == "tube" or (mask.kind == "attention" and per_frame):
        return 1 + t * num_kept(h * w, mask.ratio)
    return 1 + num_kept(t * h * w, mask.ratio)


def kept_tokens(
    mask: MaskConfig, drawn: Array, attention: Float[Array, "rows N"]
) -> Int[Array, "B R"]:
    """Ascending indices of the kept tokens, class token first, from what `draw_mask` gave.

    Args:
      mask: kind and ratio.
      drawn: of `draw_mask`.
      attention: the teacher's, as in `TeacherOutput.attention`.
    """
    if mask.kind != "attention":
        return drawn
    return attention_guided_kept(
        attention, drawn.reshape(attention.shape), mask.ratio, batch_size=drawn.shape[0]
    )


def video_vit_features(
    config: TeacherConfig, encoded: VideoViTOutput, kept: Int[Array, "B R"]
) -> dict[str, Array]:
    """Targets of a video-ViT teacher at the kept rows.

    Equal to the rows of `models.Teacher`'s output; there the full-token layers are copied and
    normalised first.

    Args:
      config: the teacher.
      encoded: its encoder's output with the target layers as hidden states.
      kept: kept tokens, class token first.

    Returns:
      `clip_middle` `[B, K, R, D]` and `clip_final` `[B, P]`, float32.
    """
    batch = kept.shape[0]
    layers, _, tokens, width = encoded.hidden_states.shape
    if config.per_frame:
        frames = encoded.hidden_states.shape[1] // batch
        # Every frame has a class token of its own.
        patches = tokens - 1
        index = kept[:, 1:] - 1
        rows = index // patches * tokens + index % patches + 1
        hidden = encoded.hidden_states.reshape(layers, batch, frames * tokens, width)
        cls = hidden[:, :, ::tokens].astype(jnp.float32).mean(2)[:, :, None]
        middle = jnp.take_along_axis(hidden, rows[None, :, :, None], axis=2)
        middle = jnp.concatenate([cls, middle.astype(jnp.float32)], axis=2)
        final = encoded.pooled.astype(jnp.float32).reshape(batch, frames, -1).mean(1)
    else:
        middle = jnp.take_along_axis(encoded.hidden_states, kept[None, :, :, None], axis=2)
        middle, final = middle.astype(jnp.float32), encoded.pooled.astype(jnp.float32)
    if config.normalization == "l2":
        middle, final = l2_normalize(middle), l2_normalize(final)
    return {"clip_middle": middle.swapaxes(0, 1), "clip_final": final}


def encode_clips(config: TeacherConfig, variables: PyTree, video: Array) -> VideoViTOutput:
    """A video-ViT teacher's encoder on clips, or on all their frames one by one."""
    if config.per_frame:
        video = video.reshape(-1, 1, *video.shape[2:])
    params = variables["params"]["encoder"]
    output: Any = VideoViT(config.encoder).apply(
        {"params": params}, video, hidden_layers=config.layers, return_pooler_attention=True
    )
    encoded: VideoViTOutput = output
    return encoded


def videomae_features(
    config: VideoMAETeacherConfig, variables: PyTree, video: Array, kept: Int[Array, "B R"]
) -> dict[str, Array]:
    """Targets `mae` `[B, K, R - 1, D]` of a VideoMAE teacher at the kept patch tokens, float32."""
    params = variables["params"]["encoder"]
    encoded: Any = VideoMAE(config.encoder).apply(
        {"params": params}, video, hidden_layers=config.layers
    )
    rows = kept[None, :, 1:, None] - 1
    features = jnp.take_along_axis(encoded.hidden_states, rows, axis=2).astype(jnp.float32)
    if config.normalization == "l2":
        features = l2_normalize(features)
    return {"mae": features.swapaxes(0, 1)}


def teacher_module(config: AnyTeacherConfig) -> Teacher | VideoMAETeacher:
    """The module of a teacher's config."""
    if isinstance(config, TeacherConfig):
        return Teacher(config)
    return VideoMAETeacher(config)


def init_teacher(config: AnyTeacherConfig, key: jax.Array) -> PyTree:
    """Boxed variables of an untrained teacher: kernels in the compute dtype, all else float32."""
    module = teacher_module(config)
    dtype = jnp.dtype(config.encoder.dtype)

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return leaf.astype(dtype) if names[-1] == "kernel" else leaf

    inputs = (jnp.zeros(x.shape, x.dtype) for x in module.example_inputs())
    return jax.tree_util.tree_map_with_path(cast, module.init(key, *inputs))


def load_teachers(
    teachers: Mapping[str, AnyTeacherConfig],
    paths: Mapping[str, str | None],
    mesh: Mesh,
    rules: Rules,
) -> PyTree:
    """Teachers' variables from saved models, sharded like those of `init_teacher`.

    Args:
      teachers: config by name.
      paths: directory of a saved model by the same names.
      mesh: where the variables are to live.
      rules: logical to mesh axes.

    Raises:
      ValueError: a path is not set, or a saved model does not fit its config (all misfits are
        listed).
    """
    unset = [name for name in teachers if not paths[name]]
    if unset:
        raise ValueError(
            "expected the folders of the frozen teachers' saved models in"
            f" {' and '.join(f'stage.{name}_path' for name in unset)}, found none; make them with"
            " `internvideo-jax convert` (docs/stage1.md names the checkpoints)"
        )
    loaded = {}
    for name, config in teachers.items():
        shapes, _ = abstract_params(
            lambda key, config=config: init_teacher(config, key), mesh, rules, jax.random.key(0)
        )
        path = paths[name]
        assert path is not None
        weights = load_weights(path, config, shapes, dtype=config.encoder.dtype)
        log.info("%s: %s", name, weights.summary)
        loaded[name] = weights.variables
    return loaded
