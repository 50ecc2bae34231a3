"""Small models of each architecture, for tests of what lies around them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax import models
from internvideo_jax.models.beats import BeatsConfig
from internvideo_jax.models.bert import BertConfig
from internvideo_jax.models.decoder_lm import DecoderLMConfig
from internvideo_jax.models.llama_text import LlamaTextConfig

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

BERT = BertConfig(
    width=16,
    depth=3,
    num_heads=2,
    mlp_dim=24,
    vocab_size=20,
    max_length=8,
    fusion_layer=2,
    cross_width=12,
)
BEATS = BeatsConfig(
    width=16,
    depth=2,
    num_heads=2,
    mlp_dim=24,
    num_frames=21,
    num_mels=8,
    patch_size=4,
    patch_width=12,
    conv_size=6,
    conv_groups=4,
    num_buckets=8,
    max_distance=6,
)
DECODER_LM = DecoderLMConfig(
    width=16,
    depth=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=24,
    vocab_size=30,
    qkv_bias=True,
    proj_bias=True,
)
LLAMA_TEXT = LlamaTextConfig(
    dataclasses.replace(DECODER_LM, head="none"), projection_dim=6, max_length=8
)
# Towers of text and sound.
TOWERS: dict[str, Any] = {
    "bert": BERT,
    "beats": BEATS,
    "decoder_lm": DECODER_LM,
    "llama_text": LLAMA_TEXT,
}


def noise(init: Callable[[jax.Array], Any], seed: int) -> Any:
    """Variables of the shapes that `init` makes, without compiling it."""
    rng = np.random.default_rng(seed)
    with nn.logical_axis_rules(()):
        shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.normal(0, 0.1, leaf.shape)
        is_variance = jax.tree_util.keystr(path[-1:], simple=True) == "var"
        return jnp.asarray(np.abs(values) if is_variance else values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
