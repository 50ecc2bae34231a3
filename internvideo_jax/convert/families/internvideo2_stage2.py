"""InternVideo2 stage 2: the files that hold the video, text and perhaps audio towers together.

The towers' keys and options are those of their own families, with `vision_encoder.`,
`text_encoder.` and `audio_encoder.` before them; the rest are of upstream
`InternVideo2/multi_modality/models/internvideo2_stage2_visual.py` and `..._audiovisual.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from internvideo_jax.convert.engine.adaptations import Adaptation
from internvideo_jax.convert.engine.family import Family, Shapes
from internvideo_jax.convert.engine.options import Options
from internvideo_jax.convert.engine.rules import Ignore, Rule, Table, layer, norm, rule, under
from internvideo_jax.convert.engine.shapes import sized
from internvideo_jax.convert.families import beats, bert, internvideo2, towers, video_vit
from internvideo_jax.models.beats import BeatsConfig
from internvideo_jax.models.stage2 import Medium, Stage2Config
from internvideo_jax.preprocessing import Preprocessing

_VISION, _TEXT, _AUDIO = "vision_encoder.", "text_encoder.", "audio_encoder."
# Where the video tower's parameters lie.
_VISION_PARAMETERS = "params/vision/"

_VIDEO = towers.Place("vision", _VISION, internvideo2.FAMILY, "distill")
_BEATS = towers.Place("beats", _AUDIO, beats.FAMILY, "beats")

_HEADS: dict[Medium, str] = {"video": "itm_head", "audio": "atm_head", "audio_video": "avtm_head"}

_OF_AUDIO = Ignore(
    r"(audio_proj|av_concat_audio_proj|av_fusion|atm_head|avtm_head)\..*",
    "what joins an audio tower that the file does not hold",
)


def _media_tokens(target: str, keys: str) -> tuple[Rule, ...]:
    return *layer(f"{target}/proj", f"{keys}.0"), *norm(f"{target}/norm", f"{keys}.1")


_JOINING = (
    rule("temperature", "temp"),
    *layer("vision_proj", "vision_proj"),
    *layer("text_proj", "text_proj"),
    *layer("audio_proj", "audio_proj"),
    *layer("audio_video_proj", "av_fusion"),
    *_media_tokens("vision_tokens", "av_concat_vision_proj"),
    *_media_tokens("audio_tokens", "av_concat_audio_proj"),
    *(r for medium, keys in _HEADS.items() for r in layer(f"{medium}_match_head", keys)),
)


def _table(config: Stage2Config) -> Table:
    parts = [
        under(internvideo2.TABLES["distill_student"], _VISION, "vision"),
        under(bert.FAMILY.table("bert", config.text), _TEXT, "text"),
    ]
    if config.audio is not None:
        parts.append(under(beats.TABLE, _AUDIO, "audio"))
    return Table(
        (*_JOINING, *(r for table in parts for r in table.rules)),
        (
            *(() if config.audio else (_OF_AUDIO,)),
            *(ignored for table in parts for ignored in table.ignored),
        ),
        tuple(tie for table in parts for tie in table.tied),
    )


def _recognize(shapes: Shapes, architecture: str | None) -> str | None:
    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in shapes)

    if not has(f"{_TEXT}bert."):
        return None
    return "audiovisual" if has(_AUDIO) else "visual"


def _bert(has_mlm_head: bool) -> towers.Place:
    kind = "bert_mlm" if has_mlm_head else "bert"
    return towers.Place("bert", _TEXT, bert.FAMILY, kind)


def _visual(options: Options) -> Stage2Config:
    # A file may be without the audio tower that its model had.
    options.take("beats", {})
    return _config(options, None, ("video",))


def _audiovisual(options: Options) -> Stage2Config:
    audio: BeatsConfig = towers.config_of(_BEATS, options)
    return _config(options, audio, ("video", "audio_video"))


def _config(
    options: Options, audio: BeatsConfig | None, match_heads: tuple[Medium, ...]
) -> Stage2Config:
    has_mlm_head = options.take("mlm_head", True)
    # Two names of one number, of the two classes.
    embed_dim = options.take("embed_dim", None)
    matched = options.take("match_heads", match_heads)
    if not isinstance(matched, list | tuple):
        raise ValueError(f"match_heads: expected a list, found {matched!r}")
    return Stage2Config(
        vision=towers.config_of(_VIDEO, options, clip_student_decoder="Linear_Decoder"),
        text=towers.config_of(_bert(has_mlm_head), options),
        audio=audio,
        embed_dim=options.size("contra_dim", embed_dim),
        media_width=options.take("av_concat_dim", None),
        match_heads=tuple(matched),
        initial_temperature=options.take("temp", 0.07),
    )


def _infer(
    kind: str, shapes: Shapes, given: Mapping[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    has_audio = kind == "audiovisual"
    merged = "av_concat_vision_proj.0.weight"
    has_mlm_head = f"{_TEXT}cls.predictions.bias" in shapes
    shown: dict[str, Any] = {
        "contra_dim": sized(shapes, "text_proj.weight", 2)[0],
        "av_concat_dim": sized(shapes, merged, 2)[0] if merged in shapes else None,
        "mlm_head": has_mlm_head,
        "match_heads": [
            medium
            for medium, head in _HEADS.items()
            # The first must be there; the others are of use with an audio tower only.
            if medium == "video" or (has_audio and f"{head}.weight" in shapes)
        ],
    }
    # A file without tables of their own is of a model that takes means for images.
    assumed: dict[str, Any] = {"vision.sep_image_video_pos_embed": False}
    places = _VIDEO, _bert(has_mlm_head), *([_BEATS] if has_audio else [])
    of_towers, of_released = towers.infer(places, shapes, given, stored)
    return shown | of_towers, assumed | of_released


def _to_options(config: Stage2Config) -> dict[str, Any]:
    options = {
        "vision": internvideo2.to_options(config.vision),
        "bert": bert.FAMILY.to_options(config.text),
        "beats": beats.FAMILY.to_options(config.audio) if config.audio else {},
    }
    return {"temp": config.initial_temperature, **towers.dotted(options)}


def _retarget(config: Stage2Config, changes: Mapping[str, int]) -> Stage2Config:
    return dataclasses.replace(config, vision=video_vit.retarget(config.vision, changes))


def _fit(
    path: str, shape: Any, source: Stage2Config, target: Stage2Config, *rest: Any
) -> Adaptation | None:
    """Only the video tower is made for other clips; the audio tower has a patch kernel, too."""
    if not path.startswith(_VISION_PARAMETERS):
        return None
    return video_vit.fit(path, shape, source.vision, target.vision, *rest)


def _preprocessing(config: Stage2Config) -> Preprocessing:
    video = video_vit.preprocessing(config.vision).require_video()
    return Preprocessing(
        video=dataclasses.replace(video, resize="bicubic_square"),
        audio=beats.FAMILY.preprocessing(config.audio).audio if config.audio else None,
        text=bert.FAMILY.preprocessing(config.text).text,
    )


def _describe(config: Stage2Config) -> str:
    texts = [
        f"video tower of {video_vit.describe(config.vision)}",
        f"text tower of {bert.FAMILY.describe(config.text)}",
    ]
    if config.audio is not None:
        texts.append(f"audio tower of {beats.FAMILY.describe(config.audio)}")
    return "; ".join(texts)


FAMILY = Family(
    name="internvideo2_stage2",
    anchors=tuple(_VISION + anchor for anchor in video_vit.ANCHORS),
    recognize=_recognize,
    kinds={"visual": _visual, "audiovisual": _audiovisual},
    tables={"stage2": _table},
    infer=_infer,
    to_options=_to_options,
    preprocessing=_preprocessing,
    describe=_describe,
    retarget=_retarget,
    fit=_fit,
    spellings=(
        # Retrieval models (`mode="ret"`) hold the text tower without its masked-language head.
        (r"(^|\.)text_encoder\.(embeddings|encoder)\.", r"\1text_encoder.bert.\2."),
        *beats.FAMILY.spellings,
    ),
)
