"""Models for other clips and classes than the checkpoint's."""

import dataclasses

import numpy as np
import pytest

from internvideo_jax.convert.engine.adaptations import inflate_patch_kernel
from internvideo_jax.convert.engine.misfit import CheckpointMisfit
from internvideo_jax.convert.engine.state_dict import to_tree
from internvideo_jax.convert.families import video_vit
from internvideo_jax.convert.families.video_vit import encoder_config
from internvideo_jax.nn.position_embedding import resize_position_table


def retarget(config, **changes):
    return video_vit.retarget(config, changes)


@pytest.fixture
def fitted(plan_of):
    """Plan and parameters of a state for another config: `fitted(state, source, target)`."""

    def run(state, source, target, **options):
        made = plan_of(state, source, target=target, **options)
        return made, to_tree(state, made)["params"]

    return run


def test_retarget_changes_the_encoder_of_any_model(tiny):
    config = tiny
    target = retarget(config, num_frames=8, image_size=12, tubelet_size=2)
    assert type(target) is type(config)
    assert encoder_config(target).grid == (4, 6, 6)
    assert retarget(config) == config


def test_classes_are_asked_of_classifiers_only(configs):
    classifier = configs["linear"]
    assert retarget(classifier, num_classes=9).num_classes == 9
    with pytest.raises(ValueError, match="checkpoint for VideoViT; leave --num_classes out"):
        retarget(configs["encoder"], num_classes=9)


def test_joint_tables_are_resized_in_time_then_space(tiny_state, fitted):
    config, state = tiny_state("pretrain")
    target = retarget(config, num_frames=6, image_size=12)
    made, params = fitted(state, config, target)
    expected = resize_position_table(state["pos_embed"], (4, 4, 4), (6, 6, 6), 1)
    np.testing.assert_array_equal(params["encoder"]["pos_embed"], expected)
    # The class token's row stays; the MAE side's table has none.
    np.testing.assert_array_equal(expected[:, 0], state["pos_embed"][:, 0])
    expected = resize_position_table(state["mae_pos_embed"], (4, 4, 4), (6, 6, 6), 0)
    np.testing.assert_array_equal(params["mae_pos_embed"], expected)
    assert made.changes.keys() == {"pos_embed", "clip_pos_embed", "mae_pos_embed"}
    assert "pos_embed: positions resized 4x4x4 -> 6x6x6" in made.summary()


def test_separable_tables_are_resized_each_by_itself(tiny_state, fitted):
    config, state = tiny_state("separable")
    target = retarget(config, num_frames=2, image_size=12)
    made, params = fitted(state, config, target)
    # Half-pixel linear resampling of 4 steps to 2 averages neighbours.
    temporal = state["pos_embed_temporal"]
    expected = (temporal[:, 0::2] + temporal[:, 1::2]) / 2
    np.testing.assert_allclose(params["pos_embed_temporal"], expected, rtol=1e-6, atol=1e-7)
    assert params["pos_embed_spatial"].shape == (1, 36, 48)
    np.testing.assert_array_equal(params["pos_embed_cls"], state["pos_embed_cls"])
    assert made.changes.keys() == {"pos_embed_temporal", "pos_embed_spatial"}


def test_videomae_tables_have_no_class_token(tiny_state, fitted):
    config, state = tiny_state("videomae_teacher")
    made, params = fitted(state, config, retarget(config, num_frames=8))
    assert params["encoder"]["pos_embed"].shape == (1, 64, 32)
    assert made.changes.keys() == {"pos_embed"}


def test_a_table_of_another_size_is_a_misfit_and_not_resized(tiny_state, fitted):
    config, state = tiny_state("encoder")
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(CheckpointMisfit, match="pos_embed"):
        fitted(state, config, retarget(config, num_frames=8))


def test_a_k710_head_becomes_that_of_one_kinetics(configs, make_state, fitted):
    config = configs["linear"]
    source = retarget(config, num_classes=710)
    state = make_state(source)
    made, params = fitted(state, source, retarget(config, num_classes=600))
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    assert kernel.shape == (20, 600)
    for i, row in enumerate((121, 562, 518)):
        np.testing.assert_array_equal(kernel[:, i], state["head.weight"][row])
        assert bias[i] == state["head.bias"][row]
    assert "head.weight: K710 classes to K600" in made.summary()


def test_other_heads_are_not_guessed(configs, make_state, fitted):
    config = configs["linear"]
    with pytest.raises(ValueError, match="5 classes, found 7.*--new_head"):
        fitted(make_state(config), config, retarget(config, num_classes=5))


def test_an_image_kernel_is_put_in_the_middle_frame(tiny_state, fitted):
    config, state = tiny_state("encoder")
    image = state["patch_embed.proj.weight"][:, :, 0]
    state["patch_embed.proj.weight"] = image
    made, params = fitted(state, config, config)
    np.testing.assert_array_equal(params["patch_embed"]["kernel"][0], image.transpose(2, 3, 1, 0))
    assert "2-D convolution given a time axis" in made.summary()

    target = retarget(config, tubelet_size=3, num_frames=12)
    _, params = fitted(state, config, target)
    kernel = params["patch_embed"]["kernel"]
    assert kernel.shape == (3, 2, 2, 3, 48)
    np.testing.assert_array_equal(kernel[1], image.transpose(2, 3, 1, 0))
    assert not kernel[[0, 2]].any()


def test_a_video_kernel_is_spread_evenly_unless_told_otherwise(tiny_state, fitted):
    config, state = tiny_state("encoder")
    kernel = state["patch_embed.proj.weight"].transpose(2, 3, 4, 1, 0)
    target = retarget(config, tubelet_size=2, num_frames=8)
    _, params = fitted(state, config, target)
    for step in params["patch_embed"]["kernel"]:
        np.testing.assert_array_equal(step, kernel[0] / 2)
    _, params = fitted(state, config, target, inflation="center")
    np.testing.assert_array_equal(params["patch_embed"]["kernel"][1], kernel[0])


def test_a_kernel_of_several_frames_is_averaged_to_one(tiny_state, fitted):
    config, state = tiny_state("videomae")
    target = retarget(config, tubelet_size=1, num_frames=2)
    _, params = fitted(state, config, target)
    expected = state["patch_embed.proj.weight"].mean(2).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(params["patch_embed"]["kernel"][0], expected, rtol=1e-6)


@pytest.mark.parametrize("positions", ["joint", "separable"])
def test_a_width_that_sines_do_not_divide_is_no_obstacle(positions, configs, make_state, fitted):
    config = configs["encoder"]
    config = dataclasses.replace(config, width=21, pooler_heads=3, position_embedding=positions)
    state = make_state(config)
    made, _ = fitted(state, config, config)
    assert len(made.loaded_keys) == len(state)


def test_tubelets_that_no_rule_connects_are_an_error():
    with pytest.raises(ValueError, match="of 1 or 3 frames, found 2"):
        inflate_patch_kernel((2, 4, 4, 3, 8), 3, "mean")
