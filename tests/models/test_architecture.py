"""What every model answers about itself."""

import dataclasses

import flax.linen as nn
import jax
import jax.extend.core
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.models import stage1, teacher, video_vit, videomae
from internvideo_jax.models.video_classifier import VideoClassifierConfig
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
SMALL_MAE = videomae.VideoMAEConfig(
    width=48, depth=2, num_heads=3, mlp_dim=100, image_size=42, num_frames=4
)


def names(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def test_each_architecture_builds_its_module_from_its_config():
    for name, config in small_models.CONFIGS.items():
        assert isinstance(models.build(config), models.ARCHITECTURES[name].module_cls)
    with pytest.raises(TypeError, match="found dict"):
        models.build({})


@pytest.mark.parametrize("name", small_models.CONFIGS)
def test_every_parameter_has_axis_names_and_a_weight_decay_rule(name):
    module = models.build(small_models.CONFIGS[name])
    boxed = models.abstract_variables(module, boxed=True)

    def is_box(leaf):
        return isinstance(leaf, nn.LogicallyPartitioned)

    for path, leaf in jax.tree.leaves_with_path(boxed["params"], is_leaf=is_box):
        assert is_box(leaf), names(path)
        assert len(leaf.names) == leaf.value.ndim, names(path)
        # Matrices decay, whatever their rank; biases, norms, scales and tables do not.
        assert module.is_decayed(names(path)) == names(path).endswith("kernel")


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


def test_a_parameter_without_a_rule_and_a_model_without_layers_are_named():
    with pytest.raises(ValueError, match="head/temperature"):
        models.build(SMALL).is_decayed("head/temperature")
    with pytest.raises(ValueError, match="Tower"):
        models.Tower(None).layer_of("head/kernel")


@pytest.mark.parametrize("kind", ["joint", "separable"])
@pytest.mark.parametrize("name", ["video_vit", "stage1_student", "teacher", "video_classifier"])
def test_any_width_has_shapes(name, kind):
    """No sines of width 30 exist in three dimensions; a table from a file is none the less one."""
    encoder = dataclasses.replace(
        SMALL, width=30, pooler_heads=3, position_embedding=kind, num_frames=2
    )
    config = small_models.CONFIGS[name]
    config = encoder if name == "video_vit" else dataclasses.replace(config, encoder=encoder)
    params = models.abstract_variables(models.build(config))["params"]
    params = params.get("encoder", params)
    assert params["pos_embed" if kind == "joint" else "pos_embed_spatial"].shape[-1] == 30


def test_a_width_without_sines_cannot_start_from_them():
    config = dataclasses.replace(small_models.ENCODER, width=24, depth=1, pooler_heads=2)
    module = models.build(config)
    with pytest.raises(jax.errors.JaxRuntimeError, match="divisible by 16, found 24"):
        jax.block_until_ready(jax.jit(module.init)(jax.random.key(0), np.zeros((1, 2, 8, 8, 3))))


def product_flops(jaxpr):
    """FLOPs of all matrix products in a jaxpr, those in loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            size = 2 * equation.outvars[0].aval.size
            for axis in contracting:
                size *= equation.invars[0].aval.shape[axis]
            total += size
            continue
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = jax.extend.core.jaxprs_in_params(equation.params)
        total += repeats * sum(map(product_flops, inner))
    return total


def traced_flops(module):
    inputs = module.example_inputs()
    variables = models.abstract_variables(module)
    return product_flops(jax.make_jaxpr(module.apply)(variables, *inputs).jaxpr)


def classifier(**options):
    return VideoClassifierConfig(SMALL, num_classes=7, **options)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, tubelet_size=2, position_embedding="separable", remat="full"),
        SMALL_MAE,
        dataclasses.replace(SMALL_MAE, as_released=True),
        teacher.VideoMAETeacherConfig(SMALL_MAE, layers=(0, 1)),
        teacher.TeacherConfig(
            dataclasses.replace(SMALL, num_frames=1), layers=(1, 2), per_frame=True
        ),
        classifier(),
        classifier(head="attentive"),
        *(
            classifier(head="concat", merge_method=method, merge_norm="ln")
            for method in ("cls_avg1", "cls_avgN", "cls_avg1_proj", "cls_avgN_proj")
        ),
        stage1.Stage1StudentConfig(SMALL, (1, 2), (2,), 30, 20, 22),
        stage1.DistillStudentConfig(SMALL, (1, 2), 30, 0, decoder="linear"),
        stage1.DistillStudentConfig(SMALL, (1, 2), 30, 20, decoder="mlp"),
    ],
    ids=lambda c: type(c).__name__ + getattr(c, "merge_method", ""),
)
def test_flops_are_those_of_the_traced_model(config, monkeypatch):
    # The chunked implementation also multiplies the padding of its last tile.
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", "reference")
    module = models.build(config)
    num_kept = module.example_inputs()[1].shape[1] if "Student" in type(config).__name__ else None
    assert num_kept is None or num_kept < SMALL.num_tokens
    assert sum(module.flops(num_kept).values()) == traced_flops(module)


def test_gradients_cost_twice_the_forward_pass():
    """Exactly so for a chain of products in which everything has a gradient."""

    def chain(weights, x):
        for weight in weights:
            x = x @ weight
        return x.sum()

    weights = [jax.ShapeDtypeStruct((8, 8), "float32")] * 3
    x = jax.ShapeDtypeStruct((5, 8), "float32")
    forward = product_flops(jax.make_jaxpr(chain)(weights, x).jaxpr)
    both = product_flops(jax.make_jaxpr(jax.grad(chain, argnums=(0, 1)))(weights, x).jaxpr)
    assert models.gradient_flops(forward) == both


def test_known_size_of_the_1b_encoder():
    """2 FLOPs per parameter of the blocks and token, and the attention's share."""
    module = models.build(video_vit.internvideo2_1b())
    block_parameters = 4 * 1408**2 + 2 * 1408 * 6144
    assert module.flops()["blocks"] == 40 * 2049 * (2 * block_parameters + 4 * 2049 * 1408)
