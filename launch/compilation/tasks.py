"""The programs of a report: a forward pass, a loss with its gradients, a step of training."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from internvideo_jax import models
from internvideo_jax.config import from_dict, nearest_name
from internvideo_jax.models.stage1 import StudentOutput
from internvideo_jax.objectives.distillation import distillation_loss
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.parallel.sharding import abstract_params, partition_spec
from internvideo_jax.training.batches import abstract_batch
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stage import Stage
from internvideo_jax.training.state import abstract_frozen, abstract_state
from internvideo_jax.training.step import make_train_step

# A jitted function and its abstract arguments.
Task = tuple[Any, tuple[Any, ...]]


def make_module(config: ConfigDict) -> nn.Module:
    """The module of a config with an `architecture` and its `config`.

    Raises:
      ValueError: there is no such architecture, or its config has wrong fields.
    """
    name = config.get("architecture")
    if name not in models.ARCHITECTURES:
        raise ValueError(
            f"config.model.architecture: expected one of {', '.join(models.ARCHITECTURES)},"
            f" found {name!r}{nearest_name(str(name), models.ARCHITECTURES)}"
        )
    architecture = models.ARCHITECTURES[name]
    model_config: Any = from_dict(architecture.config_cls, config.config, "config.model.config")
    return architecture.module_cls(model_config)


def forward_task(module: nn.Module, mesh: Mesh, batch_size: int) -> Task:
    """The forward pass, its outputs split over the batch like its inputs."""
    variables = _abstract_variables(module, mesh)
    inputs = _abstract_inputs(module, mesh, batch_size)
    outputs = _abstract_outputs(module, mesh, batch_size)
    shardings = jax.tree.map(lambda x: x.sharding, outputs)
    return jax.jit(module.apply, out_shardings=shardings), (variables, *inputs)


def gradient_task(module: nn.Module, mesh: Mesh, batch_size: int) -> Task:
    """A loss and its gradients, which have the shardings of the parameters.

    Students get the alignment loss with all terms, against targets in float32; other models the
    mean square of all outputs, which needs everything that they compute.
    """
    variables = _abstract_variables(module, mesh)
    params = variables.pop("params")
    outputs = _abstract_outputs(module, mesh, batch_size)
    targets = {}
    if isinstance(outputs, StudentOutput):
        terms = {"clip_middle": outputs.clip_middle, "clip_final": outputs.clip_final}
        if outputs.mae is not None:
            terms["mae"] = outputs.mae
        targets = {
            name: jax.ShapeDtypeStruct(term.shape, jnp.float32, sharding=term.sharding)
            for name, term in terms.items()
        }

    def loss(params: Any, rest: Any, targets: Any, *inputs: Any) -> jax.Array:
        outputs = module.apply({"params": params, **rest}, *inputs)
        if targets:
            student = {name: getattr(outputs, name) for name in targets}
            return distillation_loss(student, targets, dict.fromkeys(targets, 1.0))[0]
        squares = (jnp.mean(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(outputs))
        return sum(squares, jnp.float32(0.0))

    whole = NamedSharding(mesh, PartitionSpec())
    parts = jax.tree.map(lambda x: x.sharding, params)
    # Left to itself, the compiler may replicate the gradient of a sharded parameter.
    gradient = jax.jit(jax.value_and_grad(loss), out_shardings=(whole, parts))
    return gradient, (params, variables, targets, *_abstract_inputs(module, mesh, batch_size))


def train_step_task(stage: Stage, config: TrainConfig, mesh: Mesh, rows: int) -> Task:
    """The step that the training loop runs on batches of `rows`, frozen teachers included."""
    state, fixed = abstract_state(stage, config, mesh, DEFAULT_RULES)
    batch = abstract_batch(stage, rows, mesh, DEFAULT_RULES)
    # The program is the same for any number of steps in an epoch.
    schedule = config.schedule(config.lengths(steps_per_epoch=1000))
    step = make_train_step(stage, config, schedule, state, mesh, DEFAULT_RULES)
    frozen = abstract_frozen(stage, mesh, DEFAULT_RULES)
    return step, (state, fixed, frozen, batch)


def _abstract_variables(module: nn.Module, mesh: Mesh) -> Any:
    inputs = module.example_inputs()
    return abstract_params(module.init, mesh, DEFAULT_RULES, jax.random.key(0), *inputs)


def _abstract_inputs(module: nn.Module, mesh: Mesh, batch_size: int) -> tuple[Any, ...]:
    return tuple(_split_batch(x, 0, mesh) for x in module.example_inputs(batch_size))


def _abstract_outputs(module: nn.Module, mesh: Mesh, batch_size: int) -> Any:
    """Shapes of the outputs, split over the batch: the axis that grows with it."""
    variables = models.abstract_variables(module)
    one, many = (
        jax.eval_shape(module.apply, variables, *module.example_inputs(n))
        for n in (batch_size, 2 * batch_size)
    )

    def split(x: jax.ShapeDtypeStruct, y: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sizes = zip(x.shape, y.shape, strict=True)
        return _split_batch(x, [size == doubled for size, doubled in sizes].index(False), mesh)

    return jax.tree.map(split, one, many)


def _split_batch(x: jax.ShapeDtypeStruct, axis: int, mesh: Mesh) -> jax.ShapeDtypeStruct:
    axes = tuple("batch" if i == axis else None for i in range(x.ndim))
    sharding = NamedSharding(mesh, partition_spec(axes, DEFAULT_RULES))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
