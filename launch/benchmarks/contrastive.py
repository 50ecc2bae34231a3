"""Memory of the contrastive loss beside a version that compares all pairs on every device.

JAX is imported late, in a process of its own: how many devices there are is fixed when it starts.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax.environment import usable_cpus
from internvideo_jax.launch.arguments import UsageError
from internvideo_jax.launch.benchmarks.figures import Figure, Figures
from internvideo_jax.launch.benchmarks.forwards import relative_difference
from internvideo_jax.launch.benchmarks.runner import run_apart, say

if TYPE_CHECKING:
    import jax

    from internvideo_jax.parallel.aot import Memory

NUM_DEVICES = 8
PEER = "all pairs on every device"
TEMPERATURE = 0.07
# Of the peer's memory.
MAX_SHARE = 0.25
# Of the largest element of a gradient.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


def benchmark_contrastive(*, batch_size: int, width: int) -> Figures:
    """Compiles the loss and its gradients for 8 virtual devices, and compares the gradients.

    The memory is what XLA's analysis of the compiled programs says of one device: intermediate
    values at their peak, and results. The gradients are ours on 8 devices, and the peer's on one,
    where it takes an eighth of the memory and time. Their difference is relative to the largest
    element of each.

    Args:
      batch_size: examples on all devices together.
      width: of the embeddings.

    Raises:
      UsageError: a batch that the devices do not divide.
    """
    if batch_size % NUM_DEVICES:
        raise UsageError(
            f"expected a --batch_size that the {NUM_DEVICES} devices divide, found {batch_size}"
        )
    name = f"contrastive/{batch_size}x{width}"
    say(f"{name}: compiling for {NUM_DEVICES} virtual devices, and comparing gradients")
    memories, differences = run_apart(measure, batch_size, width, threads=usable_cpus())
    ours, theirs = (memory.temporaries + memory.outputs for memory in memories)
    figures = [
        Figure("memory per device", ours / 2**20, "MiB"),
        Figure(f"memory with {PEER}", theirs / 2**20, "MiB"),
        Figure("share", ours / theirs, at_most=MAX_SHARE),
    ]
    figures += [
        Figure(f"difference of {dtype} gradients", differences[dtype], at_most=bound)
        for dtype, bound in TOLERANCES.items()
    ]
    details = {
        "devices": NUM_DEVICES,
        "memory": dataclasses.asdict(memories[0]),
        "peer_memory": dataclasses.asdict(memories[1]),
    }
    return Figures(name, figures, details)


def measure(batch_size: int, width: int) -> tuple[list["Memory"], dict[str, float]]:
    """Memory of both versions, and by dtype the difference of their gradients."""
    import flax.linen as nn
    import jax

    from internvideo_jax.objectives.contrastive import contrastive_loss
    from internvideo_jax.parallel.aot import compile_ahead
    from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
    from internvideo_jax.parallel.rules import DEFAULT_RULES

    jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    mesh = make_mesh(MeshConfig(data=NUM_DEVICES))
    split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())

    inputs = make_inputs(batch_size, width)
    arguments = tuple(
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split if x.ndim else whole) for x in inputs
    )
    memories = []
    for loss in (contrastive_loss, all_pairs_loss):
        program = compile_ahead(gradients(loss), arguments, mesh=mesh, rules=DEFAULT_RULES)
        assert program.memory is not None
        memories.append(program.memory)

    differences = {}
    for dtype in TOLERANCES:
        with jax.enable_x64(dtype == "float64"):
            inputs = make_inputs(batch_size, width, dtype)
            with jax.set_mesh(mesh), nn.logical_axis_rules(DEFAULT_RULES):
                ours = jax.device_get(gradients(contrastive_loss)(*inputs))
            theirs = jax.device_get(gradients(all_pairs_loss)(*inputs))
        differences[dtype] = relative_difference(ours, theirs)
    return memories, differences


def make_inputs(batch_size: int, width: int, dtype: str = "float32") -> tuple[np.ndarray, ...]:
    """Embeddings of media that belong together, the temperature, and ids, some of them equal."""
    rng = np.random.default_rng(0)
    left, noise = rng.standard_normal((2, batch_size, width))
    ids = np.arange(batch_size, dtype=np.int32) * 7 % (batch_size - batch_size // 8)
    return left.astype(dtype), (left + noise).astype(dtype), np.array(TEMPERATURE, dtype), ids


def gradients(loss: Callable[..., Any]) -> Any:
    """Of a loss by both embeddings and the temperature, compiled."""
    import jax

    # A new function: what one has been traced to would not depend on the mesh.
    return jax.jit(jax.grad(lambda *inputs: loss(*inputs), argnums=(0, 1, 2)))


def all_pairs_loss(
    left: "jax.Array", right: "jax.Array", temperature: "jax.Array", ids: "jax.Array"
) -> "jax.Array":
    """The same loss, for which every device gathers both media and compares all pairs.

    Source: upstream `VTC_VTM_Loss.vtc_loss` in `InternVideo2/multi_modality/models/criterions.py`.
    """
    import jax
    import jax.numpy as jnp

    from internvideo_jax.objectives.contrastive import same_ids, similarities, unit_vectors
    from internvideo_jax.parallel.sharding import shard_map_logical, splits

    (batch,) = splits(("batch",))

    def on_a_device(*inputs: Any) -> Any:
        left, right, ids, temperature = inputs
        if batch.parts > 1:
            left, right, ids = (
                jax.lax.all_gather(x, batch.mesh_axes, tiled=True) for x in (left, right, ids)
            )
        logits = similarities(left, right, temperature)
        targets = same_ids(ids, ids).astype(logits.dtype)
        targets = targets / targets.sum(axis=1, keepdims=True)
        losses = [(targets * jax.nn.log_softmax(x)).sum(axis=1) for x in (logits, logits.T)]
        return -0.5 * jnp.mean(losses[0] + losses[1])[None]

    embedding = ("batch", None)
    run = shard_map_logical(on_a_device, (embedding, embedding, ("batch",), ()), ("batch",))
    return jnp.mean(run(unit_vectors(left), unit_vectors(right), ids, temperature))
