"""The towers of the stage-1 steps, two blocks each, of real widths and on the recipes' meshes.

`test_compile_report.py` runs these, which call the TPU compiler, in a process of their own. The
blocks of a tower are one loop: more of them compile alike.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from internvideo_jax.configs.stage1.common import encoder, in_bfloat16
from internvideo_jax.kernels.attention import prefer
from internvideo_jax.launch.compilation.tasks import gradient_task
from internvideo_jax.models import build
from internvideo_jax.models.stage1 import Stage1StudentConfig
from internvideo_jax.models.teacher import internvl_teacher, videomae_teacher
from internvideo_jax.models.video_vit import VideoViT, internvideo2_s14
from internvideo_jax.parallel import aot
from internvideo_jax.parallel.mesh import MeshConfig, default_fsdp, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import abstract_params
from internvideo_jax.training.stages.teachers import FrozenTeacher

# Topology and clips of a chip.
RECIPES = {"1b": ("v5e:16x16", 16), "6b": ("v5p:4x4x4", 32)}


@pytest.fixture(params=RECIPES)
def recipe(request):
    """Its name, the mesh, and clips of the global batch."""
    topology, clips = RECIPES[request.param]
    devices = aot.topology(topology).devices
    mesh = make_mesh(MeshConfig(fsdp=default_fsdp(len(devices))), devices)
    return request.param, mesh, clips * len(devices)


def compile_with_kernels(task, mesh):
    with prefer("pallas_tpu"):
        program = aot.compile_ahead(*task, mesh=mesh, rules=DEFAULT_RULES)
    assert program.overflow is None
    return program


def gathered_bytes(program):
    """Of all weights; the activations of one layer would be more."""
    assert {c.kind for c in program.collectives}.isdisjoint({"all-to-all", "ragged-all-to-all"})
    return sum(c.bytes * c.trips for c in program.collectives if c.kind == "all-gather")


def weight_bytes(params):
    """In bfloat16."""
    return sum(2 * x.size for x in jax.tree.leaves(params))


def test_a_student_gathers_nothing_for_the_kernels(recipe):
    name, mesh, rows = recipe
    shallow = dataclasses.replace(encoder(name), depth=2)
    student = build(Stage1StudentConfig(shallow, clip_layers=(0, 1), mae_layers=(1,)))
    task = gradient_task(student, mesh, rows)
    program = compile_with_kernels(task, mesh)
    # Of each block forward, forward again and backward.
    assert program.estimate.kernel_runs >= 2 * 3
    assert gathered_bytes(program) < 1.1 * 2 * weight_bytes(task[1][0])


@pytest.mark.parametrize("make_teacher", [internvl_teacher, videomae_teacher])
def test_a_teacher_gathers_nothing_for_the_kernels(recipe, make_teacher):
    _, mesh, rows = recipe
    config = in_bfloat16(make_teacher())
    shallow = dataclasses.replace(config.encoder, depth=2)
    config = dataclasses.replace(config, encoder=shallow, layers=(1,))
    frames = 8 * shallow.tubelet_size
    teacher = FrozenTeacher("teacher", config, None, 1)
    variables = abstract_params(teacher.init, mesh, DEFAULT_RULES, jax.random.key(0))
    split = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    video = jax.ShapeDtypeStruct((rows, frames, 224, 224, 3), jnp.float32, sharding=split)
    encode = jax.jit(lambda *x: teacher.encode(*x).hidden_states)
    program = compile_with_kernels((encode, (variables, video)), mesh)
    assert program.estimate.kernel_runs == 2
    assert gathered_bytes(program) < 1.1 * weight_bytes(variables)


@pytest.mark.parametrize(("remat", "forwards"), [("full", 2), ("attention", 1)])
def test_a_kernel_whose_results_are_kept_runs_once(remat, forwards):
    """JAX leaves the call in the backward pass; the compiler sees that nobody needs it."""
    config = dataclasses.replace(
        internvideo2_s14(), depth=2, image_size=56, dtype="bfloat16", remat=remat
    )
    mesh = make_mesh(MeshConfig(), aot.topology("v5e:1x1").devices)
    program = compile_with_kernels(gradient_task(VideoViT(config), mesh, 4), mesh)
    # And the pooler's, which is not recomputed.
    assert program.estimate.kernel_runs == 2 * (forwards + 1) + 2
