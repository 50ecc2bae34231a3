"""ViCLIP; CLIP models of images, which its training starts from.

Key names and constructor options are those of upstream `InternVideo1/Pretrain/ViCLIP`, both towers'
under `vision_encoder.` and `text_encoder.`. Files of CLIP have the image tower's under `visual.`,
the text tower's as they are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from internvideo_jax.convert.engine.adaptations import Adaptation
from internvideo_jax.convert.engine.family import Family, Shapes
from internvideo_jax.convert.engine.options import Options
from internvideo_jax.convert.engine.rules import Ignore, InitialValue, Table, rule, under
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.convert.families import (
    clip_text,
    clip_vision,
    dual_encoder_recipes,
    towers,
    video_vit,
)
from internvideo_jax.models.viclip import ViClipConfig
from internvideo_jax.preprocessing import Preprocessing

_VISION, _TEXT = "vision_encoder.", "text_encoder."

_PLACES = (
    towers.Place("vision", _VISION, clip_vision.FAMILY, "clip_vision"),
    towers.Place("text", _TEXT, clip_text.FAMILY, "clip_text"),
)

# They belong to training.
_NEUTRAL = frozenset({"masking_prob", "freeze_text", "no_weight_decay"})


def _table(config: ViClipConfig) -> Table:
    start = config.initial_temperature
    temperature = InitialValue(f"{start:g}", lambda shape: np.full(shape, start, np.float32))
    vision = under(clip_vision.TABLE, _VISION, "vision")
    text = under(clip_text.table(config.text), _TEXT, "text")
    return Table(
        (rule("temperature", "temp", initial=temperature), *vision.rules, *text.rules),
        (
            Ignore("logit_scale", "the image model's own temperature"),
            Ignore("attn_mask|context_length|input_resolution|vocab_size", "numbers of the class"),
        ),
    )


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    return "viclip" if f"{_TEXT}token_embedding.weight" in shapes else None


def _config(options: Options) -> ViClipConfig:
    vision, text = (towers.config_of(place, options) for place in _PLACES)
    return ViClipConfig(
        vision,
        text,
        initial_temperature=options.take("temp", 0.01),
        min_temperature=options.take("temp_min", 0.01),
    )


def _infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    return towers.infer(_PLACES, shapes, given, stored)


def _to_options(config: ViClipConfig) -> dict[str, Any]:
    own = {"temp": config.initial_temperature, "temp_min": config.min_temperature}
    return own | towers.dotted(
        {
            "vision": clip_vision.to_options(config.vision),
            "text": clip_text.to_options(config.text),
        }
    )


def _retarget(config: ViClipConfig, changes: Mapping[str, int]) -> ViClipConfig:
    of_texts = {name: n for name, n in changes.items() if name == "max_text_length"}
    of_clips = {name: n for name, n in changes.items() if name not in of_texts}
    return dataclasses.replace(
        config,
        vision=video_vit.retarget(config.vision, of_clips),
        text=clip_text.retarget(config.text, of_texts),
    )


def _fit(
    path: str, shape: Shape, source: ViClipConfig, target: ViClipConfig, *rest: Any
) -> Adaptation | None:
    if path.startswith("params/text/"):
        return clip_text.fit(path, shape, source.text, target.text, *rest)
    return clip_vision.fit(path, shape, source.vision, target.vision, *rest)


def _preprocessing(config: ViClipConfig) -> Preprocessing:
    video, text = clip_vision.preprocessing(config.vision), clip_text.preprocessing(config.text)
    return dataclasses.replace(video, text=text.text)


def _describe(config: ViClipConfig) -> str:
    return (
        f"video tower of {video_vit.describe(config.vision)};"
        f" text tower of {clip_text.describe(config.text)}"
    )


FAMILY = Family(
    name="viclip",
    anchors=(f"{_VISION}class_embedding",),
    recognize=_recognize,
    kinds={"viclip": _config},
    tables={"viclip": _table},
    infer=_infer,
    to_options=_to_options,
    preprocessing=_preprocessing,
    describe=_describe,
    neutral=_NEUTRAL,
    retarget=_retarget,
    fit=_fit,
    recipes={"viclip": dual_encoder_recipes.recipe()},
    spellings=(
        # CLIP's own names.
        (r"^((?:model\.)*)visual\.", rf"\1{_VISION}"),
        (
            r"^((?:model\.)*)(token_embedding|positional_embedding|transformer|ln_final"
            r"|text_projection)(?=\.|$)",
            rf"\1{_TEXT}\2",
        ),
    ),
)
