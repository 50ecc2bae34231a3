"""What a step's kernels do, by the TPU compiler.

`test_compile_report.py` runs these in a process of their own.
"""

import dataclasses

import pytest

from internvideo_jax.kernels.attention import prefer
from internvideo_jax.launch.compilation.tasks import gradient_task
from internvideo_jax.models.video_vit import VideoViT, internvideo2_s14
from internvideo_jax.parallel import aot
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES


def compile_with_kernels(task, mesh):
    with prefer("pallas_tpu"):
        program = aot.compile_ahead(*task, mesh=mesh, rules=DEFAULT_RULES)
    assert program.overflow is None
    return program


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
