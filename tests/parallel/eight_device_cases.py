"""Checks that need eight devices; `test_sharding.py` runs them in a process that has them."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from internvideo_jax import models
from internvideo_jax.models.stage1 import Stage1Student, Stage1StudentConfig
from internvideo_jax.models.video_classifier import VideoClassifier, VideoClassifierConfig
from internvideo_jax.models.video_vit import VideoViT, VideoViTConfig
from internvideo_jax.nn.attention import attend
from internvideo_jax.nn.linear import dense
from internvideo_jax.parallel.hlo import Collective, collectives
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import (
    abstract_params,
    init_sharded,
    shard_map_logical,
    unsplit_dimensions,
    variable_shardings,
)
from tests.small_models import noise_like

HEADS = ("batch", None, "heads", None)


ENCODER = VideoViTConfig(
    width=32, depth=2, num_heads=4, mlp_dim=48, image_size=28, num_frames=2, pooler_heads=2
)
CLASSIFIER = VideoClassifierConfig(ENCODER, num_classes=10)
STUDENT = Stage1StudentConfig(
    ENCODER, (0, 1), (1,), clip_target_dim=16, clip_final_dim=24, mae_target_dim=40
)


@pytest.mark.parametrize(
    ("module", "sizes"),
    [
        # Nine tokens on two shards.
        (VideoViT(ENCODER), {"data": 2, "tensor": 2, "context": 2}),
        (Stage1Student(STUDENT), {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_models_give_what_they_give_on_one_device(module, sizes):
    """The library's own layers under a mesh, heads and MLP split too; gradients of students."""
    video = jax.random.normal(jax.random.key(1), (8, 2, 28, 28, 3))
    inputs = (video,)
    if isinstance(module, Stage1Student):
        inputs += (jnp.tile(jnp.array([[0, 1, 3, 6]], jnp.int32), (8, 1)),)

    def loss(variables, *inputs):
        # Decoded features have unit length: their mean square would have no gradient.
        out = jax.tree.leaves(module.apply(variables, *inputs))
        return sum(jnp.mean((x - jnp.cos(jnp.arange(x.size)).reshape(x.shape)) ** 2) for x in out)

    run = jax.value_and_grad(loss) if isinstance(module, Stage1Student) else module.apply
    mesh = make_mesh(MeshConfig(**sizes))
    whole = noise_like(models.abstract_variables(module), 0)
    with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
        examples = (jax.random.key(0), *(x[:1] for x in inputs))
        shapes = abstract_params(module.init, mesh, DEFAULT_RULES, *examples)
        shardings = jax.tree.map(lambda x: x.sharding, shapes)
        actual = jax.jit(run)(jax.device_put(whole, shardings), *inputs)
    kernel = shapes["params"].get("encoder", shapes["params"])["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.spec == P(None, "fsdp", "tensor")
    expected = jax.jit(lambda *x: run(*x))(whole, *inputs)
    scale = max(jnp.abs(x).max(initial=0) for x in jax.tree.leaves(expected))
    # Two summation orders of float32.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale),
        expected,
        jax.device_get(actual),
    )


def attention_case(*, b=4, n=7, m=7, h=4, kv_heads=4, bias=None, heads="heads", **options):
    """q, k, v, a bias of the given leading axes or None, and options for `attend`."""
    numbers = np.random.default_rng(b + n + m)
    shapes = ((b, n, h, 4), (b, m, kv_heads, 4), (b, m, kv_heads, 4))
    if bias is not None:
        shapes += ((*bias, n, m),)
    operands = tuple(jnp.asarray(numbers.standard_normal(shape), jnp.float32) for shape in shapes)
    return operands if bias is not None else (*operands, None), {"heads": heads, **options}


DROPOUT = {"dropout_rate": 0.4, "dropout_rng": jax.random.key(3)}
SEGMENTS = (jnp.arange(28).reshape(4, 7) % 3, jnp.arange(20).reshape(4, 5) % 3)
ATTENTION = {
    "padded": attention_case(),
    "bias": attention_case(bias=(4, 4)),
    "one bias": attention_case(n=8, m=8, bias=(1, 1)),
    "segments": attention_case(m=5, segment_ids=SEGMENTS),
    "caches": attention_case(m=9, is_causal=True, query_offset=jnp.array([2, 0, 1, -3])),
    "causal": attention_case(n=8, m=8, is_causal=True),
    "grouped": attention_case(kv_heads=2),
    "grouped unevenly": attention_case(h=12, kv_heads=3),
    "multi-query": attention_case(kv_heads=1),
    "dropout": attention_case(**DROPOUT),
    "one query": attention_case(n=1, m=6, heads="pooler_heads"),
    "together": attention_case(
        m=5,
        kv_heads=2,
        bias=(4, 4),
        segment_ids=SEGMENTS,
        kv_lengths=jnp.array([5, 0, 3, 9]),
        is_causal=True,
        query_offset=jnp.array([2, 0, 1, -1]),
        scale=0.3,
        **DROPOUT,
    ),
}


def attend_all(operands):
    """Output and gradients of each case, in one program."""

    def run(name, values):
        out, pull_back = jax.vjp(
            lambda q, k, v, bias: attend(q, k, v, bias=bias, **ATTENTION[name][1]), *values
        )
        return out, pull_back(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    return {name: run(name, values) for name, values in operands.items()}


CUBE = {"data": 2, "tensor": 2, "context": 2}
# Two key-value heads on four shards.
HEADS_OVER_FOUR = {"data": 1, "fsdp": 2, "tensor": 4}
TOKENS_OVER_FOUR = {"data": 1, "fsdp": 2, "context": 4}


@pytest.mark.parametrize(
    ("sizes", "implementation", "names"),
    [
        (CUBE, "reference", ATTENTION),
        (HEADS_OVER_FOUR, "xla_chunked", ATTENTION),
        (TOKENS_OVER_FOUR, "reference", ATTENTION),
        (CUBE, "pallas_tpu", ("padded", "grouped", "multi-query", "one query")),
    ],
    ids=["all", "heads", "tokens", "kernel"],
)
def test_each_option_of_attention_gives_what_it_gives_on_one_device(
    sizes, implementation, names, monkeypatch
):
    operands = {name: ATTENTION[name][0] for name in names}
    on_one_device = jax.jit(attend_all)(operands)
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", implementation)
    with jax.set_mesh(make_mesh(MeshConfig(**sizes))), nn.logical_axis_rules(DEFAULT_RULES):
        found = jax.device_get(jax.jit(lambda x: attend_all(x))(operands))
    for name, expected in on_one_device.items():
        # Two summation orders of float32.
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=0, atol=1e-5, err_msg=name),
            found[name],
            expected,
        )


def test_each_device_sees_its_own_batch_and_heads():
    seen = []

    def spy(x):
        seen.append(x.shape)
        return x

    x = jnp.zeros((8, 6, 4, 5))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
        out = jax.jit(shard_map_logical(spy, (HEADS,), HEADS))(x)
        assert seen == [(2, 6, 2, 5)]
        assert out.sharding.spec == P(("data", "fsdp"), None, "tensor")
    assert out.shape == x.shape


def test_pytrees_of_outputs():
    def split(x):
        return {"all": x, "rows": (x.sum((1, 3)),)}

    x = jax.random.normal(jax.random.key(0), (8, 6, 4, 5))
    axes = {"all": HEADS, "rows": (("batch", "heads"),)}
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
        out = jax.jit(shard_map_logical(split, (HEADS,), axes))(x)
    np.testing.assert_allclose(out["rows"][0], x.sum((1, 3)), rtol=1e-5, atol=1e-6)


def test_indivisible_heads_name_the_divisors():
    x = jnp.zeros((8, 2, 25, 4))
    mesh = make_mesh(MeshConfig(tensor=8))
    message = r"'heads'.*8.*axis tensor, found 25.* 1, 5, 25;"
    with (
        jax.set_mesh(mesh),
        nn.logical_axis_rules(DEFAULT_RULES),
        pytest.raises(ValueError, match=message),
    ):
        jax.jit(shard_map_logical(lambda x: x, (HEADS,), HEADS))(x)


def test_without_mesh_or_rules_the_function_is_called_as_it_is():
    x = jnp.zeros((3, 2, 5, 4))
    shapes = []

    def spy(x):
        shapes.append(x.shape)
        return x

    wrapped = shard_map_logical(spy, (HEADS,), HEADS)
    wrapped(x)
    with nn.logical_axis_rules(DEFAULT_RULES):
        wrapped(x)
    with jax.set_mesh(make_mesh(MeshConfig())):
        jax.jit(wrapped)(x)
    assert shapes == [x.shape] * 3


def test_init_sharded_gives_the_values_of_an_ordinary_init():
    layer, x = dense(6, ("embed", "mlp"), jnp.float32, None), jnp.ones((1, 8))
    expected = nn.unbox(jax.jit(layer.init)(jax.random.key(3), x))
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    init = (layer.init, mesh, DEFAULT_RULES, jax.random.key(3), x)
    # An active mesh with rules must not make the dead forward pass refuse its single example.
    with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
        variables = init_sharded(*init)
    jax.tree.map(np.testing.assert_array_equal, expected, variables)
    assert variables["params"]["kernel"].addressable_shards[0].data.shape == (2, 3)
    shapes = abstract_params(*init)
    kinds = [jax.tree.map(lambda x: (x.dtype, x.sharding), x) for x in (shapes, variables)]
    assert kinds[0] == kinds[1]


def test_indivisible_parameters_stay_whole_and_are_listed():
    module, mesh = VideoClassifier(CLASSIFIER), make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    init = (module.init, jax.random.key(0), *module.example_inputs())
    boxed = jax.eval_shape(*init)
    shardings = variable_shardings(boxed, mesh, DEFAULT_RULES)
    assert shardings["params"]["head"]["kernel"].spec == P(None, None)
    assert unsplit_dimensions(boxed, mesh, DEFAULT_RULES) == [
        f"params/head/{name}: axis 'vocab' of size 10 is kept whole, tensor=4 does not divide it"
        for name in ("bias", "kernel")
    ]


def test_collectives_of_a_compiled_program_are_read():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    def shard(x):
        def body(total, _):
            return jax.lax.psum(total, "fsdp") / 4, None

        total = jax.lax.scan(body, x, length=5)[0]
        return jax.lax.all_gather(total, "data", tiled=True)

    step = jax.shard_map(
        shard, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P("fsdp"), check_vma=False
    )
    text = jax.jit(step).lower(jnp.zeros((16, 3))).compile().as_text()
    assert collectives(text) == [
        Collective("all-reduce", 4, 5, True, 2 * 3 * 4),
        Collective("all-gather", 2, 1, True, 4 * 3 * 4),
    ]
