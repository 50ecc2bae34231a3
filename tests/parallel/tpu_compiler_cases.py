"""Checks with the TPU compiler; `test_aot.py` runs them in a process with its environment."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvideo_jax.configs.encoder import get_config
from internvideo_jax.kernels.attention import prefer
from internvideo_jax.launch.compilation.reports import compile_report
from internvideo_jax.launch.compilation.tasks import gradient_task
from internvideo_jax.models.teacher import TeacherConfig
from internvideo_jax.models.video_vit import VideoViT, internvideo2_s14, internvl_6b
from internvideo_jax.nn.attention import attend
from internvideo_jax.parallel import aot
from internvideo_jax.parallel.mesh import MeshConfig, default_fsdp, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import abstract_params
from internvideo_jax.training.stages.teachers import FrozenTeacher


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("v4:2x2x1", 4),
        ("v5e:1x1", 1),
        ("v5e:16x16", 256),
        ("v5p:2x2x2", 8),
        ("v5p:8x8x16", 1024),
        ("v6e:16x16", 256),
        ("tpu7x:4x4x4", 128),
    ],
)
def test_topologies_and_meshes_on_them(name, devices):
    topology = aot.topology(name)
    assert len(topology.devices) == devices
    fsdp = default_fsdp(devices)
    mesh = make_mesh(MeshConfig(fsdp=fsdp), topology.devices)
    assert mesh.devices.shape == (devices // fsdp, fsdp, 1, 1)
    assert len(set(mesh.devices.flat)) == devices


def test_topologies_that_the_compiler_does_not_know_are_refused_with_examples():
    with pytest.raises(ValueError, match="for example v5e:4x4, .*found 'v5e:3x3"):
        aot.topology("v5e:3x3")


def test_only_data_crosses_slices():
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:4x4", num_slices=2
    ).devices
    mesh = make_mesh(MeshConfig(fsdp=8), devices)
    slices = [{device.slice_index for device in row.flat} for row in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]
    with pytest.raises(ValueError, match="the 2 slices divide, found data=1"):
        make_mesh(MeshConfig(fsdp=32), devices)


def product(mesh, rows, columns):
    """`x @ w` with `rows` of x split over all devices and w over `fsdp`."""
    x = jax.ShapeDtypeStruct((rows, columns), jnp.float32, sharding=spec(mesh, ("data", "fsdp")))
    w = jax.ShapeDtypeStruct((columns, columns), jnp.float32, sharding=spec(mesh, "fsdp"))
    return aot.compile_ahead(
        jax.jit(lambda x, w: x @ w, out_shardings=spec(mesh, ("data", "fsdp"))),
        (x, w),
        mesh=mesh,
        rules=DEFAULT_RULES,
    )


def spec(mesh, *axes):
    return NamedSharding(mesh, P(*axes))


def test_memory_and_collectives_of_a_product():
    mesh = make_mesh(MeshConfig(fsdp=8), aot.topology("v5e:4x4").devices)
    program = product(mesh, 16 * 4096, 1024)
    assert program.overflow is None
    assert program.memory.arguments == 4096 * 1024 * 4 + 128 * 1024 * 4
    assert program.memory.outputs == 4096 * 1024 * 4
    assert program.memory.total < 0.1 * 2**30
    [gather] = program.collectives
    assert (gather.kind, gather.group, gather.trips) == ("all-gather", 8, 1)
    # The compiler multiplies in bfloat16 unless told otherwise, and gathers after the cast.
    assert gather.bytes == 1024 * 1024 * 2
    chip = aot.CHIPS["v5e"]
    at_peak = 2 * 4096 * 1024**2 / chip.flops
    assert 0.8 * at_peak < program.estimate.cycles / chip.clock_hz < 5 * at_peak


def test_too_large_a_program_is_a_result():
    mesh = make_mesh(MeshConfig(), aot.topology("v5e:1x1").devices)
    program = product(mesh, 2**20, 4096)
    assert program.memory is None
    assert "exceeds available HBM (15.75G)" in program.overflow
    assert program.required_bytes > 2 * 2**20 * 4096 * 4


def test_weight_gradients_are_scattered_and_never_reduced_whole_over_the_slice():
    """A weight sharded over a whole slice would be all-reduced instead."""
    config = dataclasses.replace(
        internvideo2_s14(),
        depth=2,
        image_size=56,
        num_frames=2,
        dtype="bfloat16",
        remat="full",
    )
    mesh = make_mesh(MeshConfig(fsdp=8), aot.topology("v5e:4x4").devices)
    task = gradient_task(VideoViT(config), mesh, batch_size=64 * 16)
    program = aot.compile_ahead(*task, mesh=mesh, rules=DEFAULT_RULES)
    in_blocks = [c for c in program.collectives if c.trips == config.depth]
    scattered = [c for c in in_blocks if c.kind == "reduce-scatter"]
    kernels = 3 * config.width**2 + 2 * config.width * config.mlp_dim
    assert {c.group for c in scattered} == {8}
    assert sum(c.bytes for c in scattered) >= 2 * kernels
    whole_slice = [c for c in in_blocks if c.kind == "all-reduce" and c.group == mesh.size]
    smallest_kernel = 2 * config.width**2
    assert max((c.bytes for c in whole_slice), default=0) < smallest_kernel / 10


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mesh.fsdp", 3, "fsdp=3 .* needs a multiple of 3 devices, found 16"),
        ("batch_per_device", 0, "batch_per_device: expected at least 1, found 0"),
        ("model.architecture", "vit", "found 'vit'"),
        ("model.config.num_heads", 5, "5 heads; change"),
        ("batch_per_device", None, "expected a config with a field 'batch_per_device'"),
    ],
)
def test_wrong_configs_are_named(field, value, message):
    config = get_config("s14")
    if value is None:
        with config.unlocked():
            del config[field]
    else:
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        compile_report(config, "v5e:4x4")


@pytest.mark.parametrize("frames", [128, 256])
def test_attention_of_a_teachers_frames_does_not_take_them_one_by_one(frames):
    """The compiler lays out the frames innermost, where taking one reads them all: 13 s."""
    topology = aot.topology("v5e:1x1")
    mesh = make_mesh(MeshConfig(), topology.devices)
    x = jax.ShapeDtypeStruct((frames, 257, 25, 128), jnp.bfloat16, sharding=spec(mesh))
    with prefer("xla_heads"):
        program = aot.compile_ahead(jax.jit(attend), (x, x, x), mesh=mesh, rules=DEFAULT_RULES)
    # It is 9 ms for 128 frames, 12 ms with the scores of all heads in memory.
    assert program.estimate.cycles / topology.chip.clock_hz < 0.015 * frames / 128


def test_teachers_in_int8_gather_bytes_and_take_less_time():
    encoder = dataclasses.replace(internvl_6b(), depth=2, dtype="bfloat16")
    config = TeacherConfig(encoder, layers=(1,), per_frame=True)
    mesh = make_mesh(MeshConfig(fsdp=8), aot.topology("v5e:4x4").devices)
    batch = spec(mesh, ("data", "fsdp"))
    video = jax.ShapeDtypeStruct((16 * 8, 8, 224, 224, 3), jnp.float32, sharding=batch)
    seconds, gathered = {}, {}
    for quantization in ("none", "int8"):
        teacher = FrozenTeacher(
            "teacher", dataclasses.replace(config, quantization=quantization), None, 1
        )
        variables = abstract_params(teacher.init, mesh, DEFAULT_RULES, jax.random.key(0))
        encode = jax.jit(lambda *x, teacher=teacher: teacher.encode(*x).hidden_states)
        program = aot.compile_ahead(encode, (variables, video), mesh=mesh, rules=DEFAULT_RULES)
        seconds[quantization] = program.estimate.cycles
        gathers = (c for c in program.collectives if c.kind == "all-gather" and c.trips == 2)
        gathered[quantization] = sum(c.bytes * c.trips for c in gathers)
    assert gathered["int8"] < 0.55 * gathered["none"]
    # Narrow blocks gain nothing: rounding the inputs costs more than their products.
    assert seconds["int8"] < 0.8 * seconds["none"]
