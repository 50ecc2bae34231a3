"""Constructor options of the PyTorch classes as configs."""

import pytest

from internvideo_jax.convert.engine.upstream import config_from_upstream
from internvideo_jax.models.stage1 import distill_student, stage1_student
from internvideo_jax.models.teacher import internvideo2_teacher, internvl_teacher, videomae_teacher
from internvideo_jax.models.video_vit import internvideo2_1b, internvideo2_b14

ONE_BILLION = {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": "48/11"}
BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4}
SIX_BILLION = {"embed_dim": 3200, "depth": 48, "num_heads": 25, "mlp_ratio": 4}


@pytest.mark.parametrize("ratio", ["48/11", 48 / 11, 4.3637])
def test_the_hidden_size_of_1b_is_6144_however_the_ratio_is_written(ratio):
    config = config_from_upstream("encoder", ONE_BILLION | {"mlp_ratio": ratio})
    assert config == internvideo2_1b()


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("encoder", BASE, internvideo2_b14()),
        (
            "pretrain",
            ONE_BILLION | {"clip_return_layer": 6, "mae_return_layer": 4},
            stage1_student(internvideo2_1b()),
        ),
        ("distill", BASE | {"clip_return_layer": 6}, distill_student(internvideo2_b14())),
        ("internvideo2_teacher", ONE_BILLION, internvideo2_teacher(internvideo2_1b())),
        ("internvl_teacher", SIX_BILLION, internvl_teacher()),
        ("videomae_teacher", ONE_BILLION | {"init_values": 0.0}, videomae_teacher()),
    ],
)
def test_the_released_set_ups(kind, options, expected):
    assert config_from_upstream(kind, options) == expected


def test_aligned_layers_may_be_listed_or_counted():
    options = BASE | {"clip_return_layer": 3}
    counted = options | {"clip_student_return_interval": 2.5}
    assert config_from_upstream("distill", counted).clip_layers == (6, 9, 11)
    listed = options | {"clip_student_return_index": [5, 0, 2]}
    assert config_from_upstream("distill", listed).clip_layers == (0, 2, 5)


def test_classifier_heads():
    options = BASE | {"num_classes": 7}
    assert config_from_upstream("classify", options).head == "linear"
    assert config_from_upstream("ap", options).head == "attentive"
    concat = config_from_upstream(
        "cat", options | {"merge_method": "cls_avgN_proj", "merge_norm": "kaiming_BN"}
    )
    assert (concat.head, concat.merge_method, concat.merge_norm) == (
        "concat",
        "cls_avgN_proj",
        "kaiming_bn",
    )
    # With merge_method "proj" that class computes what the plain classifier does.
    assert config_from_upstream("cat", options) == config_from_upstream("classify", options)


def test_the_gelu_follows_the_fused_flag_unless_it_is_named():
    assert config_from_upstream("encoder", BASE).activation == "gelu_tanh"
    plain = BASE | {"use_fused_mlp": False}
    assert config_from_upstream("encoder", plain).activation == "gelu_erf"
    named = plain | {"mlp_activation": "gelu_tanh"}
    assert config_from_upstream("encoder", named).activation == "gelu_tanh"


def test_fallback_options_fill_gaps_only():
    config = config_from_upstream(
        "encoder", BASE, {"num_heads": 6, "num_frames": 16, "weight_decay": 0.05}
    )
    assert (config.num_heads, config.num_frames) == (12, 16)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("encoder", BASE | {"num_frame": 8}, r"num_frame; did you mean 'num_frames'"),
        ("encoder", BASE | {"cls_token_num": 4, "predictor": 1}, "cls_token_num, predictor"),
        ("encoder", {"embed_dim": 768}, "expected option"),
        ("encoder", BASE | {"in_chans": 1}, "'in_chans'.* to be 3, found 1"),
        ("encoder", BASE | {"drop_cls_token": True}, "not supported"),
        ("encoder", BASE | {"num_heads": "12"}, "num_heads: expected int"),
        ("pretrain", BASE | {"clip_return_layer": 6}, "'mae_return_layer'"),
        ("distill", BASE | {"clip_return_layer": 1, "clip_student_decoder": "X"}, "MLP_Decoder"),
        ("cat", BASE | {"merge_method": "cls_avg2"}, "merge_method: expected one of"),
        ("student", BASE, "expected a kind among .*encoder"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(kind, options, message):
    with pytest.raises(ValueError, match=message):
        config_from_upstream(kind, options)
