"""What every model answers about itself."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.models import stage1, video_vit
from internvideo_jax.models.video_classifier import VideoClassifierConfig
from internvideo_jax.parallel.rules import DEFAULT_RULES
from tests import small_models

SMALL = video_vit.VideoViTConfig(
    width=48,
    depth=3,
    num_heads=3,
    mlp_dim=100,
    image_size=42,
    num_frames=4,
    pooled_dim=24,
    pooler_heads=2,
)
ALL = small_models.CONFIGS | small_models.TOWERS


def names(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def test_each_architecture_builds_its_module_from_its_config():
    for name, config in ALL.items():
        assert isinstance(models.build(config), models.ARCHITECTURES[name].module_cls)
    with pytest.raises(TypeError, match="found dict"):
        models.build({})


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_has_axes_with_rules_a_decay_and_a_layer(name):
    module = models.build(ALL[name])
    boxed = models.abstract_variables(module, boxed=True)["params"]
    known = {None, *(axis for axis, _ in DEFAULT_RULES)}
    leaves = jax.tree.leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    for path, leaf in leaves:
        text = names(path)
        assert len(leaf.names) == leaf.value.ndim, text
        assert known.issuperset(leaf.names), text
        # Matrices decay, whatever their rank; biases, norms, scales and tables do not.
        is_decayed = module.is_decayed(text)
        assert is_decayed == text.endswith("kernel") if name in small_models.CONFIGS else True
        layer = module.layer_of(text)
        assert ("blocks/" in text) == (not isinstance(layer, int)), text
        assert isinstance(layer, int) or layer.shape == leaf.value.shape[:1]
        assert np.max(layer) <= module.last_layer


@pytest.mark.parametrize("name", small_models.CONFIGS)
def test_layers_are_numbered_from_input_to_head(name):
    module = models.build(small_models.CONFIGS[name])
    params = models.abstract_variables(module)["params"]
    for path, leaf in jax.tree.leaves_with_path(params):
        inner = names(path).removeprefix("encoder/")
        layer = module.layer_of(names(path))
        if inner.startswith("blocks/"):
            np.testing.assert_array_equal(layer, [1, 2])
            assert leaf.shape[0] == 2
        else:
            is_input = inner.split("/")[0] in ("patch_embed", "cls_token", "pos_embed")
            assert layer == (0 if is_input else 3), names(path)


def test_separable_position_tables_are_left_at_the_full_rate_as_upstream():
    assert models.build(SMALL).layer_of("pos_embed_spatial") == 4


def test_a_parameter_without_a_decay_rule_is_named():
    with pytest.raises(ValueError, match="head/temperature"):
        models.build(SMALL).is_decayed("head/temperature")


@pytest.mark.parametrize("kind", ["joint", "separable"])
@pytest.mark.parametrize("name", ["video_vit", "stage1_student", "teacher", "video_classifier"])
def test_any_width_has_shapes(name, kind):
    """Sines in three dimensions have widths of 16, 32, ...; a table from a file may have any."""
    encoder = dataclasses.replace(
        SMALL, width=30, pooler_heads=3, position_embedding=kind, num_frames=2
    )
    config = small_models.CONFIGS[name]
    config = encoder if name == "video_vit" else dataclasses.replace(config, encoder=encoder)
    params = models.abstract_variables(models.build(config))["params"]
    params = params.get("encoder", params)
    assert params["pos_embed" if kind == "joint" else "pos_embed_spatial"].shape[-1] == 30


def test_flops_count_the_products_of_all_parts():
    """By hand: projections, scores and sums of the blocks, and of the pooler's one query."""
    n, width = 37, 48
    pooler = 2 * width**2 * (1 + 2 * n) + 4 * n * width + 2 * width * 24
    expected = {
        "patch_embed": 2 * 36 * 14 * 14 * 3 * width,
        "blocks": 3 * (2 * n * width * (4 * width + 200) + 4 * n**2 * width),
        "pooler": pooler,
    }
    assert models.build(SMALL).flops() == expected
    head = {"extra_mlp": 2 * 2 * 24 * 96, "head": 2 * 24 * 7}
    assert models.build(VideoClassifierConfig(SMALL, 7, "attentive")).flops() == expected | head
    student = models.build(stage1.Stage1StudentConfig(SMALL, (1, 2), (2,), 30, 20, 22)).flops()
    assert student["clip_decoder"] == 2 * (2 * 9 * width * 30)
    assert student["mae_decoder"] == 2 * 8 * width * (width + 22)


def test_flops_of_other_towers():
    beats = models.build(small_models.BEATS).flops()
    assert beats["pos_conv"] == 2 * 10 * 6 * (16 // 4) * 16
    bert = models.build(small_models.BERT).flops()
    assert bert["mlm_head"] == 2 * 8 * 16 * (16 + 20)
    assert set(models.build(small_models.LLAMA_TEXT).flops()) == {"blocks", "rest"}


def test_known_size_of_the_1b_encoder():
    """2 FLOPs per parameter of the blocks and token, and the attention's share."""
    module = models.build(video_vit.internvideo2_1b())
    block_parameters = 4 * 1408**2 + 2 * 1408 * 6144
    assert module.flops()["blocks"] == 40 * 2049 * (2 * block_parameters + 4 * 2049 * 1408)
