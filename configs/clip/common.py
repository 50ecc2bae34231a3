"""What the recipes of the CLIP family share."""

import dataclasses
from typing import Any

from internvideo_jax.convert.engine.family import family_of
from internvideo_jax.convert.engine.upstream import architecture_of
from internvideo_jax.data.config import DataConfig
from internvideo_jax.models.internvideo2_clip import InternVideo2ClipConfig
from internvideo_jax.models.llama_text import LlamaTextConfig
from internvideo_jax.models.viclip import ViClipConfig
from internvideo_jax.training.stages.contrastive_config import ContrastiveConfig

ClipConfig = InternVideo2ClipConfig | ViClipConfig


def in_bfloat16(model: ClipConfig) -> ClipConfig:
    """The model as it is trained: in bfloat16, its blocks recomputed where gradients need them."""
    computing: dict[str, Any] = {"dtype": "bfloat16", "remat": "full"}
    text: Any = model.text
    if isinstance(text, LlamaTextConfig):
        text = dataclasses.replace(text, lm=dataclasses.replace(text.lm, **computing))
    else:
        text = dataclasses.replace(text, **computing)
    vision: Any = dataclasses.replace(model.vision, **computing)
    return dataclasses.replace(model, vision=vision, text=text)


def data(stage: ContrastiveConfig) -> DataConfig:
    """Clips and captions as a stage takes them."""
    vision = stage.model.vision
    text = family_of(architecture_of(stage.model)).preprocessing(stage.model).text
    assert text is not None
    return DataConfig(
        mixture_by="batch",
        sampling="intervals",
        num_frames=vision.num_frames,
        image_size=vision.image_size,
        resize="bicubic_square",
        augmentation="random_resized_crop",
        tokenizer=text.tokenizer,
        prompt=text.prompt,
        max_text_length=text.max_length,
    )
