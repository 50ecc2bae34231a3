"""Conversion tables of the VideoMAEv2 encoder.

Released pre-training files hold it under `encoder.` beside the decoder.
"""

from internvideo_jax.convert.engine.rules import Ignore, Table, nested, rule
from internvideo_jax.convert.engine.transforms import CONV3D, JOIN_QV_BIAS
from internvideo_jax.convert.families.internvideo2 import BLOCKS, layer, norm

_REPLACED = ("params/blocks/attn/qkv/bias",)

ENCODER = (
    *layer("patch_embed", "patch_embed.proj", CONV3D),
    rule("pos_embed", "pos_embed"),
    *(r for r in BLOCKS if r.target not in _REPLACED),
    rule("blocks/norm1/bias", "blocks.{layer}.norm1.bias"),
    rule("blocks/norm2/bias", "blocks.{layer}.norm2.bias"),
    rule(
        "blocks/attn/qkv/bias",
        "blocks.{layer}.attn.q_bias blocks.{layer}.attn.v_bias",
        JOIN_QV_BIAS,
    ),
    rule("blocks/ls1/gamma", "blocks.{layer}.gamma_1"),
    rule("blocks/ls2/gamma", "blocks.{layer}.gamma_2"),
    *norm("norm", "norm"),
)

DECODER = (Ignore(r"(decoder|encoder_to_decoder)\..*|mask_token", "VideoMAE pre-training decoder"),)

VIDEOMAE = Table(ENCODER, DECODER)

VIDEOMAE_TEACHER = Table(nested(ENCODER, "encoder"), DECODER)
