"""What configs of models and of their inputs refuse, whoever makes them."""

import dataclasses
import math
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from internvideo_jax import models
from internvideo_jax.config import CheckedConfig, from_dict, to_dict
from internvideo_jax.models.beats import beats_iter3_plus
from internvideo_jax.models.bert import bert_large_fusion
from internvideo_jax.models.clip_text import mobileclip_b_text
from internvideo_jax.models.llama_text import internvl_c_text
from internvideo_jax.models.stage1 import distill_student, stage1_student
from internvideo_jax.models.stage2 import Stage2Config
from internvideo_jax.models.teacher import internvideo2_teacher, internvl_teacher, videomae_teacher
from internvideo_jax.models.viclip import viclip_b16, viclip_l14
from internvideo_jax.models.video_vit import internvideo2_1b, internvideo2_6b, internvideo2_s14
from internvideo_jax.nn.lora import LoRAConfig
from internvideo_jax.preprocessing import (
    AudioPreprocessing,
    Preprocessing,
    TextPreprocessing,
    VideoPreprocessing,
)
from tests.small_models import CONFIGS, DECODER_LM, INTERNVIDEO2_CLIP, TOWERS, VICLIP

PREPROCESSING = Preprocessing(
    VideoPreprocessing(),
    AudioPreprocessing(),
    TextPreprocessing("wordpiece", ("vocab.txt",), max_length=8),
)
EVERY = {
    **CONFIGS,
    **TOWERS,
    "adapted": dataclasses.replace(DECODER_LM, lora=LoRAConfig(rank=2, alpha=4.0)),
    "stage2": Stage2Config(
        CONFIGS["distill_student"], dataclasses.replace(TOWERS["bert"], cross_width=32)
    ),
    "viclip": VICLIP,
    **{f"clip with {name}": config for name, config in INTERNVIDEO2_CLIP.items()},
    "preprocessing": PREPROCESSING,
}
# None of them is a value of any field.
WRONG = {
    int: (-1, 10**9, 10**400, True, 1.0, "1", None, [1]),
    float: (math.nan, math.inf, -math.inf, 1e300, 10**400, True, "1", [1.0]),
    str: (0, None, "float64", ["a"]),
    bool: (0, 1, "true", None),
}


def cases(config):
    """Every field of a config and of those inside it, with values that it must refuse."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kinds = (
            getattr(config, field.name),
            {hints[field.name], *get_args(hints[field.name])},
        )
        if dataclasses.is_dataclass(value):
            for path, inner in cases(value):
                yield (field.name, *path), inner
        elif isinstance(value, tuple):
            # Any text may be a name.
            for wrong in WRONG[type(value[0])] if value else ():
                if not (isinstance(value[0], str) and isinstance(wrong, str)):
                    yield (field.name,), (*value[1:], wrong)
        else:
            for kind in kinds & WRONG.keys() | ({str} if isinstance(value, str) else set()):
                for wrong in WRONG[kind]:
                    if not (wrong is None and type(None) in kinds):
                        yield (field.name,), wrong


def changed(fields, path, value):
    """A nested dict with another value at a path."""
    name, *rest = path
    return fields | {name: changed(fields[name], rest, value) if rest else value}


def test_every_number_of_every_architecture_has_a_range():
    classes = [architecture.config_cls for architecture in models.ARCHITECTURES.values()]
    for cls in [*classes, Preprocessing]:
        assert issubclass(cls, CheckedConfig)
        for name, hint in get_type_hints(cls, include_extras=True).items():
            kinds = {hint, *get_args(hint)}
            is_field = name in {field.name for field in dataclasses.fields(cls)}
            if is_field and get_origin(hint) is not Annotated:
                assert not kinds & {int, float}, f"{cls.__name__}.{name}"


@pytest.mark.parametrize("name", EVERY)
def test_values_out_of_range_or_of_another_type_are_refused_by_name(name):
    config = EVERY[name]
    found = list(cases(config))
    assert len(found) > 30
    for path, value in found:
        with pytest.raises(ValueError, match="expected .* found") as caught:
            from_dict(type(config), changed(to_dict(config), path, value), "model.json: config")
        message = str(caught.value)
        assert ".".join(("model.json: config", *path)) in message, message
        assert len(message) < 1000
        if len(path) == 1:
            with pytest.raises(ValueError, match=rf"{type(config).__name__}\.{path[0]}"):
                dataclasses.replace(config, **{path[0]: value})


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("video_vit", {"num_heads": 3}, "number of heads divides"),
        ("video_vit", {"pooler_heads": 3}, "change `pooler_heads`"),
        ("video_vit", {"image_size": 9}, "divisible by the patch size"),
        ("video_vit", {"num_frames": 3, "tubelet_size": 2}, "divisible by the tubelet size"),
        ("video_vit", {"patch_size": 0}, "patch_size"),
        ("video_vit", {"tubelet_size": 0}, "tubelet_size"),
        ("video_vit", {"image_size": 2**14, "num_frames": 2**16}, "a position table of at most"),
        ("videomae", {"width": 2**14}, r"VideoMAEConfig\.width: expected int from 1 to 8,192"),
        ("videomae", {"image_size": 2**13, "patch_size": 1}, "a position table of at most"),
        ("teacher", {"layers": (1, 0)}, "ascending blocks below 2"),
        ("stage1_student", {"mae_layers": (2,)}, "expected mae_layers .* found"),
        ("distill_student", {"clip_layers": (0, 0)}, "expected clip_layers .* found"),
        ("beats", {"conv_groups": 3}, "conv_groups divides"),
        ("beats", {"num_frames": 2**16}, "expected 1 to 4096 patches"),
        ("beats", {"num_frames": 3}, "expected 1 to 4096 patches"),
        ("beats", {"max_distance": 1}, "max_distance"),
        ("bert", {"fusion_layer": 4}, "fusion_layer"),
        ("decoder_lm", {"num_kv_heads": 3}, "num_kv_heads"),
        ("decoder_lm", {"head_dim": 3}, "even head_dim"),
        ("clip_text", {"heads_by_layer": (2,)}, "none or all of the 2 layers"),
        ("clip_text", {"heads_by_layer": (2, 3)}, "change `heads_by_layer`"),
        ("viclip", {"text": dataclasses.replace(TOWERS["clip_text"], projection_dim=5)}, "6 .* 5"),
    ],
)
def test_values_that_do_not_go_together_are_refused(name, changes, reason):
    with pytest.raises(ValueError, match=reason):
        dataclasses.replace(EVERY[name], **changes)


def test_a_clip_fits_into_memory():
    assert VideoPreprocessing(image_size=448, num_frames=256)
    with pytest.raises(ValueError, match=r"num_frames 4096 of image_size 448"):
        VideoPreprocessing(image_size=448, num_frames=4096)


def test_the_deviation_of_pixels_is_not_zero():
    with pytest.raises(ValueError, match=r"VideoPreprocessing.std\[1\]: expected"):
        VideoPreprocessing(std=(0.2, 0, 0.2))


@pytest.mark.parametrize(
    "make",
    [
        internvideo2_s14,
        lambda: dataclasses.replace(internvideo2_6b(), num_frames=64, image_size=448),
        lambda: stage1_student(internvideo2_6b()),
        lambda: distill_student(internvideo2_s14()),
        lambda: models.VideoClassifierConfig(internvideo2_1b(), num_classes=710),
        lambda: internvideo2_teacher(internvideo2_1b()),
        internvl_teacher,
        videomae_teacher,
        beats_iter3_plus,
        bert_large_fusion,
        internvl_c_text,
        mobileclip_b_text,
        viclip_b16,
        viclip_l14,
    ],
)
def test_models_as_they_are_released_are_in_range(make):
    assert make()


def test_lists_and_whole_numbers_arrive_in_the_types_of_their_fields():
    config = models.TeacherConfig(CONFIGS["video_vit"], layers=[0, 1])
    assert config.layers == (0, 1)
    assert hash(config)
    assert type(AudioPreprocessing(mean=3).mean) is float
