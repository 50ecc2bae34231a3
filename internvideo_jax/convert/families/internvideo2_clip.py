"""InternVideo2-CLIP: models that are put together from several files.

A released file holds what was trained: the video tower's pooler, the temperature, and what aligns
small models. It adds to a file with the video tower (of stage 2, or distilled) and to one with the
text tower (InternVL-C's or MobileCLIP's). Keys are those of upstream
`InternVideo2/multi_modality/models/internvideo2_clip.py` and `internvideo2_clip_small.py`, options
those of their configs.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from internvideo_jax.convert.engine.adaptations import Adaptation
from internvideo_jax.convert.engine.family import Family, Part, Shapes
from internvideo_jax.convert.engine.options import Options
from internvideo_jax.convert.engine.rules import Table, layer, norm, rule, under
from internvideo_jax.convert.engine.shapes import sized
from internvideo_jax.convert.engine.verify import Arrays, Recipe, Reference
from internvideo_jax.convert.families import (
    clip_text,
    dual_encoder_recipes,
    internvideo2,
    llama,
    towers,
    video_vit,
)
from internvideo_jax.models.clip_text import ClipTextConfig
from internvideo_jax.models.internvideo2_clip import InternVideo2ClipConfig
from internvideo_jax.models.llama_text import LlamaTextConfig
from internvideo_jax.models.video_vit import VideoViTConfig
from internvideo_jax.preprocessing import Preprocessing

_VISION, _TEXT = "vision_encoder.", "text_encoder."
# Where the video tower's parameters lie.
_VISION_PARAMETERS = "params/vision/"
# Small models alone have it, and so do their released files.
_ALIGNMENT = "vision_align.1.weight"
_WORDS = f"{_TEXT}transformer.embed_tokens.weight"
_BYTE_PAIRS = f"{_TEXT}token_embedding.weight"
# What older versions of transformers leave in files with nothing else of a LLaMA.
_FREQUENCIES = f"{_TEXT}transformer.layers.0.self_attn.rotary_emb.inv_freq"

_VIDEO = towers.Place(
    "vision_encoder", _VISION, internvideo2.FAMILY, "encoder", frozenset({"name", "align_dim"})
)
_TEXTS = {
    "clip_llama": towers.Place(
        "text_encoder",
        _TEXT,
        llama.FAMILY,
        "llama_text",
        # Whether there are adapters is the tensors' to say.
        frozenset({"name", "transformer_width", "use_lora"}),
    ),
    "clip_mobileclip": towers.Place(
        "text_encoder", _TEXT, clip_text.FAMILY, "mobileclip_text", frozenset({"name"})
    ),
}


def _text_place(config: InternVideo2ClipConfig) -> towers.Place:
    is_llama = isinstance(config.text, LlamaTextConfig)
    return _TEXTS["clip_llama" if is_llama else "clip_mobileclip"]


def _text_table(config: LlamaTextConfig | ClipTextConfig) -> Table:
    if isinstance(config, LlamaTextConfig):
        return llama.FAMILY.table("llama_text", config)
    return clip_text.table(config)


def _table(config: InternVideo2ClipConfig) -> Table:
    vision = under(internvideo2.TABLES["video_vit"], _VISION, "vision")
    text = under(_text_table(config.text), _TEXT, "text")
    return Table(
        (
            rule("temperature", "temp"),
            *norm("vision_align/norm", "vision_align.0"),
            *layer("vision_align/proj", "vision_align.1"),
            *vision.rules,
            *text.rules,
        ),
        (*vision.ignored, *text.ignored),
        (*vision.tied, *text.tied),
    )


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    if not any(key.startswith((_VISION, "vision_align.")) for key in shapes):
        # A text tower by itself.
        return None
    is_small = _ALIGNMENT in shapes or _BYTE_PAIRS in shapes
    return "clip_mobileclip" if is_small else "clip_llama"


def with_image_positions(encoder: VideoViTConfig) -> VideoViTConfig:
    """The config of a video tower with positions of images as upstream's class has them."""
    if encoder.image_positions != "resized":
        return encoder
    is_joint = encoder.position_embedding == "joint"
    return dataclasses.replace(encoder, image_positions="mean" if is_joint else "spatial")


def _config(options: Options) -> InternVideo2ClipConfig:
    # Upstream has it among the video tower's options.
    of_vision = towers.options_of(options.options, _VIDEO.name).get("align_dim")
    return InternVideo2ClipConfig(
        vision=with_image_positions(towers.config_of(_VIDEO, options, init_values=0.1)),
        text=towers.config_of(_TEXTS[options.kind], options),
        align_dim=options.take("align_dim", of_vision),
        initial_temperature=options.take("temp", 0.01),
        min_temperature=options.take("temp_min", 0.01),
    )


def _infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    shown, assumed = towers.infer((_VIDEO, _TEXTS[kind]), shapes, given, stored)
    if kind == "clip_mobileclip":
        is_there = _ALIGNMENT in shapes
        # Where it is not, the plan says so.
        text = f"{_TEXTS[kind].name}.projection_dim"
        shown["align_dim"] = sized(shapes, _ALIGNMENT, 2)[0] if is_there else shown[text]
    return shown, assumed


def _to_options(config: InternVideo2ClipConfig) -> dict[str, Any]:
    place = _text_place(config)
    options = {
        _VIDEO.name: internvideo2.to_options(config.vision),
        place.name: place.family.to_options(config.text),
    }
    return {
        "temp": config.initial_temperature,
        "temp_min": config.min_temperature,
        **towers.dotted(options),
    }


def _retarget(config: InternVideo2ClipConfig, changes: Mapping[str, int]) -> InternVideo2ClipConfig:
    return dataclasses.replace(config, vision=video_vit.retarget(config.vision, changes))


def _fit(
    path: str,
    shape: Any,
    source: InternVideo2ClipConfig,
    target: InternVideo2ClipConfig,
    *rest: Any,
) -> Adaptation | None:
    """Only the video tower is made for other clips."""
    if not path.startswith(_VISION_PARAMETERS):
        return None
    return video_vit.fit(path, shape, source.vision, target.vision, *rest)


def _preprocessing(config: InternVideo2ClipConfig) -> Preprocessing:
    video = video_vit.preprocessing(config.vision).require_video()
    return Preprocessing(
        video=dataclasses.replace(video, resize="bicubic_square"),
        text=_text_place(config).family.preprocessing(config.text).text,
    )


def _describe(config: InternVideo2ClipConfig) -> str:
    text = _text_place(config).family.describe(config.text)
    return f"video tower of {video_vit.describe(config.vision)}; text tower of {text}"


_VIDEO_RECIPE = _VIDEO.family.recipes["video_vit"]


def _text_recipe(place: towers.Place) -> Recipe:
    """How a text tower is verified by itself, which has one architecture."""
    (recipe,) = place.family.recipes.values()
    return recipe


def _inside(prefix: str, recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """The hooks of a tower whose submodules are called by their names in the whole."""
    return tuple((rf"{re.escape(prefix)}(?:{path})", name) for path, name in recipe.hooks)


_HOOKS = (
    *_inside(_VISION, _VIDEO_RECIPE),
    *(hook for place in _TEXTS.values() for hook in _inside(_TEXT, _text_recipe(place))),
)


def _run_towers(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    """What the towers' own recipes find."""
    text, (name,) = module.text_tower()
    run = _text_recipe(_text_place(module.config)).run
    of_text = run(text, {"params": variables["params"][name]}, inputs, reference)
    return of_text | _VIDEO_RECIPE.run(module, variables, inputs, reference)


FAMILY = Family(
    name="internvideo2_clip",
    anchors=(_WORDS, _FREQUENCIES, _ALIGNMENT),
    recognize=_recognize,
    kinds=dict.fromkeys(_TEXTS, _config),
    tables={"internvideo2_clip": _table},
    infer=_infer,
    to_options=_to_options,
    preprocessing=_preprocessing,
    describe=_describe,
    retarget=_retarget,
    fit=_fit,
    recipes={"internvideo2_clip": dual_encoder_recipes.recipe(_run_towers, _HOOKS)},
    spellings=(*llama.FAMILY.spellings, *clip_text.SPELLINGS),
    parts=(
        Part(_VISION, "internvideo2", "video_vit", "a file of stage 2, or of a distilled encoder"),
        Part(_TEXT, "llama", "llama_text", "InternVL-C's file"),
        Part(_TEXT, "clip_text", "clip_text", "that of MobileCLIP for S, B and L"),
    ),
)
