"""Files of an InternVideo2-CLIP as they are released: of its towers, and what adds to them."""

from collections.abc import Mapping

import numpy as np

# How MobileCLIP spells its keys, by CLIP's own.
_MOBILECLIP = {
    "token_embedding.": "embedding_layer.",
    "positional_embedding": "positional_embedding.pos_embed.pos_embed",
    "ln_final.": "final_layer_norm.",
    "text_projection": "projection_layer",
    "resblocks.": "",
    "ln_1.": "pre_norm_mha.0.",
    "attn.in_proj_": "pre_norm_mha.1.qkv_proj.",
    "attn.out_proj.": "pre_norm_mha.1.out_proj.",
    "ln_2.": "pre_norm_ffn.0.",
    "mlp.c_fc.": "pre_norm_ffn.1.",
    "mlp.c_proj.": "pre_norm_ffn.4.",
}
_TRAINED = ("vision_encoder.clip_projector.", "vision_align.", "temp")

State = dict[str, np.ndarray]


def as_mobileclip(key: str) -> str:
    """The key of a text tower as MobileCLIP spells it; others as they are."""
    if key.startswith("text_encoder."):
        for ours, theirs in _MOBILECLIP.items():
            key = key.replace(ours, theirs)
    return key


def split(whole: Mapping[str, np.ndarray], *, is_small: bool) -> list[State]:
    """The state dicts of three files: of the video tower, of the text tower, and the add-on.

    What the add-on trained is larger by one than in `whole`.

    Args:
      whole: of the model, with upstream's keys, a small one's text tower as MobileCLIP spells it.
      is_small: whether the towers are a distilled encoder and MobileCLIP's, or those of stage 2 and
        InternVL-C.
    """
    addon = {key: np.asarray(x + 1) for key, x in whole.items() if key.startswith(_TRAINED)}
    video = {key: x for key, x in whole.items() if key.startswith("vision_encoder.")}
    text = {key: x for key, x in whole.items() if key.startswith("text_encoder.")}
    # What else the files hold.
    other = np.zeros(3, np.float32)
    if is_small:
        # Distilled encoders have no prefix.
        video = {key.removeprefix("vision_encoder."): x for key, x in video.items()}
        video |= {"clip_decoder.0.norm.bias": other, "clip_pos_embed": other}
        text |= {"image_encoder.model.cls_token": other, "logit_scale": other}
    else:
        video |= {
            "temp": np.zeros((), np.float32),
            "text_encoder.bert.word": other,
            "itm_head.bias": other,
        }
        video |= {"vision_encoder.clip_decoder.0.norm.bias": other, "text_proj.bias": other}
        text = {key.removeprefix("text_encoder."): x for key, x in text.items()}
        image = np.zeros((4, 3, 2, 2), np.float32)
        text |= {"patch_embed.proj.weight": image, "cls_token": other, "logit_scale": other}
    return [video, text, addon]
