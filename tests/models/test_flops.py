import dataclasses

import jax
import jax.extend.core
import pytest

from internvideo_jax import models
from internvideo_jax.models import stage1, teacher, video_vit, videomae
from internvideo_jax.models.flops import forward_flops, gradient_flops
from internvideo_jax.models.stage1 import DistillStudent, Stage1Student
from internvideo_jax.models.video_classifier import VideoClassifierConfig

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
        teacher.TeacherConfig(SMALL, layers=(1, 2)),
        teacher.TeacherConfig(
            dataclasses.replace(SMALL, num_frames=1), layers=(1, 2), per_frame=True
        ),
        classifier(),
        classifier(head="attentive"),
        *(
            classifier(head="concat", merge_method=method, merge_norm="ln")
            for method in ("cls_avg1", "cls_avgN", "cls_avg1_proj", "cls_avgN_proj")
        ),
    ],
    ids=lambda c: type(c).__name__ + getattr(c, "merge_method", ""),
)
def test_flops_are_those_of_the_traced_model(config, monkeypatch):
    # The chunked implementation also multiplies the padding of its last tile.
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", "reference")
    module_cls = next(
        a.module_cls for a in models.ARCHITECTURES.values() if isinstance(config, a.config_cls)
    )
    assert sum(forward_flops(config).values()) == traced_flops(module_cls(config))


@pytest.mark.parametrize(("kind", "final_dim"), [("stage1", 20), ("linear", 0), ("mlp", 20)])
def test_flops_of_students_count_the_kept_tokens(kind, final_dim):
    options = {"clip_layers": (1, 2), "clip_target_dim": 30, "clip_final_dim": final_dim}
    if kind == "stage1":
        config = stage1.Stage1StudentConfig(SMALL, mae_layers=(2,), mae_target_dim=22, **options)
        module = Stage1Student(config)
    else:
        config = stage1.DistillStudentConfig(SMALL, decoder=kind, **options)
        module = DistillStudent(config)
    num_kept = module.example_inputs()[1].shape[1]
    assert num_kept < SMALL.num_tokens
    flops = forward_flops(config, num_kept)
    assert sum(flops.values()) == traced_flops(module)
    assert ("mae_decoder" in flops) == (kind == "stage1")


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
    assert gradient_flops(forward) == both


def test_known_size_of_the_1b_encoder():
    """2 FLOPs per parameter of the blocks and token, and the attention's share."""
    config = video_vit.internvideo2_1b()
    block_parameters = 4 * 1408**2 + 2 * 1408 * 6144
    expected = 40 * 2049 * (2 * block_parameters + 4 * 2049 * 1408)
    assert forward_flops(config)["blocks"] == expected


def test_other_configs_are_refused():
    with pytest.raises(TypeError, match="found dict"):
        forward_flops({})
