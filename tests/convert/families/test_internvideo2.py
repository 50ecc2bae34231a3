"""Configs read from names and shapes."""

import dataclasses
import json
import re

import pytest

from internvideo_jax import models
from internvideo_jax.convert.engine import upstream
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.upstream import architecture_of, infer_config, to_upstream
from internvideo_jax.convert.families.video_vit import infer_grid
from internvideo_jax.models.stage1 import distill_student, stage1_student
from internvideo_jax.models.teacher import internvl_teacher, videomae_teacher
from internvideo_jax.models.video_vit import internvideo2_1b, internvideo2_l14, internvideo2_s14

S14 = internvideo2_s14()
RELEASED = {
    "encoder": S14,
    "16 frames": dataclasses.replace(internvideo2_l14(), num_frames=16),
    "stage-2 frames": dataclasses.replace(internvideo2_1b(), num_frames=4),
    "classifier": models.VideoClassifierConfig(S14, 400),
    "attentive": models.VideoClassifierConfig(S14, 174, head="attentive"),
    **{
        f"{method} {norm} {positions}": models.VideoClassifierConfig(
            dataclasses.replace(S14, position_embedding=positions),
            5,
            head="concat",
            merge_method=method,
            merge_norm=norm,
        )
        for method, norm, positions in [
            ("cls_avg1", "kaiming_bn", "joint"),
            ("cls_avg1_proj", "bn", "separable"),
            ("cls_avgN", "ln", "separable"),
            ("cls_avgN_proj", "bn", "joint"),
        ]
    },
    "pretrain": stage1_student(S14),
    "distill": distill_student(S14),
    "distill, linear decoders": dataclasses.replace(distill_student(S14), decoder="linear"),
    "no final decoder": dataclasses.replace(distill_student(S14), clip_final_dim=0),
    "separable": dataclasses.replace(S14, position_embedding="separable", image_size=196),
    "without options": dataclasses.replace(
        S14, qkv_bias=True, qk_norm=False, layer_scale_init=None, tubelet_size=2
    ),
    "InternVL": internvl_teacher(),
    "VideoMAEv2": videomae_teacher(),
}


@pytest.fixture
def infer(shapes_of):
    """Config read from shapes, or from those of a config's checkpoint: `infer(config, given=)`."""

    def run(shapes, architecture=None, **options):
        shapes = shapes if isinstance(shapes, dict) else shapes_of(shapes)
        return infer_config(recognize(shapes, architecture=architecture), **options)

    return run


@pytest.mark.parametrize("case", RELEASED)
def test_a_model_of_a_released_width_is_read_from_its_tensors_alone(case, infer):
    assert infer(RELEASED[case]) == RELEASED[case]


def test_what_tensors_do_not_show_can_be_given_or_stored(configs, options, shapes_of, infer):
    config = configs["linear"]
    shapes = shapes_of(config)
    assert infer(shapes, given=options) == config
    assert infer(shapes, stored=options) == config
    # The user wins over the file.
    wrong = options | {"num_heads": 6}
    assert infer(shapes, given={"num_heads": 3}, stored=wrong) == config
    # Stored arguments do not overrule tensors.
    more = {"depth": 99, "num_classes": 1000, "lr": 1e-3, "clip_return_layer": 2}
    assert infer(shapes, stored=options | more) == config


def test_the_options_of_a_config_are_what_its_tensors_do_not_show(tiny, infer):
    config = tiny
    if isinstance(getattr(config, "encoder", None), models.VideoViTConfig):
        encoder = dataclasses.replace(config.encoder, activation="gelu_erf", drop_path_rate=0.1)
        config = dataclasses.replace(config, encoder=encoder)
    stored = json.loads(json.dumps(to_upstream(config)))
    assert infer(config, architecture_of(config), stored=stored) == config


def test_stored_frames_that_do_not_fit_the_table_are_passed_over(infer):
    # Pre-training scripts store the 16 frames they read; the student has 8.
    stored = {"num_frames": 16}
    assert infer(internvideo2_s14(), stored=stored).num_frames == 8


@pytest.mark.parametrize(
    "stored",
    [
        {"num_frames": 8, "num_segments": 1, "input_size": 224},
        {"num_frames": 2, "num_segments": 4, "input_size": 224},
        # Not these frames of that size, though each alone would divide the table.
        {"num_frames": 32, "num_segments": 1, "input_size": 224},
        {"num_frames": 2, "num_segments": 4, "input_size": 448},
        {"num_frames": 8, "img_size": [224, 224], "input_size": 112},
        {"num_frames": None, "input_size": None, "img_size": 0},
        {"num_frames": True, "input_size": "448"},
        {"tubelet_size": 2, "patch_size": 16, "num_frames": 16, "input_size": 256},
    ],
)
def test_recorded_clips_are_a_hint_to_the_table(stored, infer):
    assert infer(internvideo2_s14(), stored=stored) == internvideo2_s14()


def test_what_a_table_contradicts_is_said(shapes_of):
    found = recognize(shapes_of(internvideo2_s14()))
    stored = {"num_frames": 32, "input_size": 224, "depth": 24, "num_heads": 3, "lr": 1e-3}
    notes = upstream.infer(found, stored=stored).notes
    assert len(notes) == 2
    for part in ("num_frames=32 (tensors show 8)", "depth=24 (tensors show 12)"):
        assert part in notes[0]
    assert "num_heads=3 (released models of this width: 6)" in notes[1]
    assert upstream.infer(found, stored={"num_frames": 8, "lr": 1e-3}).notes == ()


@pytest.mark.parametrize("stored", [{"num_frames": 32}, {"num_frames": 2}, {"img_size": 448}])
def test_a_hint_against_the_released_grid_is_not_taken_alone(stored, infer):
    with pytest.raises(ValueError, match=r"8x16x16 or .*--option=img_size"):
        infer(internvideo2_s14(), stored=stored)


@pytest.mark.parametrize(
    ("rows", "stored"), [(2048, {}), (4096, {}), (64, {"num_frames": 4, "img_size": 56})]
)
def test_a_table_without_a_row_for_the_class_token_is_refused(rows, stored, shapes_of, infer):
    shapes = shapes_of(internvideo2_s14()) | {"pos_embed": (1, rows, 384)}
    with pytest.raises(ValueError, match=f"a row for the class token, found {rows} rows"):
        infer(shapes, stored=stored)


@pytest.mark.parametrize("key", ["pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"])
@pytest.mark.parametrize("shape", [(0,), (384,), (), (1, 0, 384), (0, 3, 1, 14, 14)])
def test_shapes_are_looked_at_before_sizes_are_read_from_them(key, shape, shapes_of, infer):
    with pytest.raises(ValueError, match=f"{re.escape(key)}.*shape {re.escape(str(list(shape)))}"):
        infer(shapes_of(internvideo2_s14()) | {key: shape})


def test_a_tensor_that_no_option_mends_is_named_alone(configs, shapes_of, infer):
    with pytest.raises(ValueError, match=r"empty tensor of shape \[1, 0, 8\]") as caught:
        infer(shapes_of(configs["encoder"]) | {"pos_embed": (1, 0, 8)})
    assert "--option" not in str(caught.value)


def test_a_number_far_beyond_the_layers_is_no_layer(shapes_of, infer):
    shapes = shapes_of(internvideo2_s14())
    for number in ("200000000", "999999", "9" * 5000):
        stray = shapes | {f"blocks.{number}.norm1.weight": (384,)}
        assert infer(stray).depth == 12
    assert infer(shapes | {"blocks.13.norm1.weight": (384,)}).depth == 14


def test_parameters_that_zero_3_sharded_away_say_how_to_gather_them(shapes_of, infer):
    with pytest.raises(ValueError, match=r"ZeRO.*zero_to_fp32\.py"):
        infer(dict.fromkeys(shapes_of(internvideo2_s14()), (0,)))


def test_unknown_numbers_of_heads_must_be_given(configs, infer):
    config = configs["encoder"]
    with pytest.raises(ValueError, match="--option=num_heads=N --option=attn_pool_num_heads=N"):
        infer(config, given={"num_frames": 4})
    # Together with all else that must be given.
    with pytest.raises(ValueError, match="(?s)--option=num_frames=N.*--option=num_heads=N"):
        infer(config)


@pytest.mark.parametrize(
    ("tokens", "grid"),
    [(2048, (8, 16, 16)), (4096, (16, 16, 16)), (1024, (4, 16, 16)), (256, (1, 16, 16))],
)
def test_the_grids_of_released_tables_are_known(tokens, grid):
    assert infer_grid(tokens) == grid


def test_an_ambiguous_grid_lists_its_readings():
    # 8 frames at 336 pixels: 24x24 patches, but also 18 frames of 16x16.
    with pytest.raises(ValueError, match=r"8x24x24.*--option=num_frames"):
        infer_grid(4608)
    assert infer_grid(4608, frames=8) == (8, 24, 24)
    assert infer_grid(4608, side=24) == (8, 24, 24)
    with pytest.raises(ValueError, match="no grid"):
        infer_grid(2048, frames=16)
    # Readings are not looked for without end.
    with pytest.raises(ValueError, match="no grid"):
        infer_grid(10**18 + 3)


def test_a_model_at_336_pixels_is_read_with_one_option(infer):
    config = dataclasses.replace(internvideo2_s14(), image_size=336)
    assert infer(config, given={"img_size": 336}) == config


@pytest.mark.parametrize("source", ["classifier", "pretrain", "distill"])
def test_an_architecture_can_be_asked_of_a_checkpoint_of_another(source, shapes_of, infer):
    shapes = shapes_of(RELEASED[source])
    assert infer(shapes, architecture="video_vit") == internvideo2_s14()
    teacher = infer(shapes, architecture="teacher")
    assert teacher.encoder == internvideo2_s14()
    assert not teacher.per_frame


def test_a_classifier_without_head_needs_to_be_told_its_classes(shapes_of, infer):
    shapes = shapes_of(RELEASED["pretrain"])
    with pytest.raises(ValueError, match="--new_head --num_classes=N"):
        infer(shapes, architecture="video_classifier")
    config = infer(shapes, architecture="video_classifier", given={"num_classes": 5})
    assert config == models.VideoClassifierConfig(internvideo2_s14(), 5)


def test_a_model_with_a_text_tower_is_named(shapes_of, infer):
    shapes = {f"vision_encoder.{k}": s for k, s in shapes_of(RELEASED["pretrain"]).items()}
    shapes["text_encoder.transformer.embeddings.weight"] = (5, 4)
    with pytest.raises(ValueError, match="text tower.*--architecture=video_vit or teacher"):
        infer(shapes)
    assert infer(shapes, architecture="video_vit") == internvideo2_s14()


def test_an_image_kernel_is_that_of_an_image_tower(shapes_of, infer):
    shapes = shapes_of(internvl_teacher())
    shapes["patch_embed.proj.weight"] = (3200, 3, 14, 14)
    assert infer(shapes) == internvl_teacher()


def test_one_missing_key_does_not_change_what_the_model_is(configs, options, shapes_of, infer):
    config = configs["linear"]
    shapes = shapes_of(config)
    for key in [k for k in shapes if "blocks.0." in k or k in ("cls_token", "head.weight")]:
        rest = {k: s for k, s in shapes.items() if k != key}
        assert infer(rest, given=options) == config, key


def test_stored_values_of_other_types_are_not_trusted(configs, options, shapes_of, infer):
    shapes = shapes_of(configs["encoder"])
    stored = {"img_size": "8", "num_frames": [4]}
    with pytest.raises(ValueError, match="position table"):
        infer(shapes, given={"num_heads": 3, "attn_pool_num_heads": 4}, stored=stored)
    with pytest.raises(ValueError, match="num_heads: expected int"):
        infer(shapes, given={"num_frames": 4}, stored=options | {"num_heads": "3"})


def test_missing_blocks_are_left_for_the_plan_to_list(shapes_of, infer):
    shapes = shapes_of(internvideo2_s14())
    shapes = {k: s for k, s in shapes.items() if not k.startswith("blocks.")}
    assert infer(shapes).depth == 0
