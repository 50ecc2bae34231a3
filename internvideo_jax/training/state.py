"""The state of a training run, created in its sharding."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh

from internvideo_jax.nn import int8
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.parallel.sharding import abstract_params, init_sharded, unsplit_dimensions
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.optimizer import map_paths, part_of
from internvideo_jax.training.stage import Stage, Variables

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """What changes from step to step; the position in the data and all draws follow from `step`.

    Parameters that are not trained lie beside it, in a tree that is called `fixed`.

    Attributes:
      step: steps done, int32 `[]`; skipped ones count.
      params: the trained parameters, float32.
      opt_state: the optimizer's state for them.
      extra: the model's other collections, e.g. `{"batch_stats": ...}`.
      ema: their running average, or None.
      bad_steps: skipped steps in a row up to now, int32 `[]`.
    """

    step: jax.Array
    params: PyTree
    opt_state: optax.OptState
    extra: PyTree
    ema: PyTree | None
    bad_steps: jax.Array

    def variables(self, fixed: PyTree) -> Variables:
        """The model's variables."""
        return {"params": merge(fixed, self.params), **self.extra}

    def averaged_variables(self, fixed: PyTree) -> Variables | None:
        """The variables with averaged weights; None without averages."""
        if self.ema is None:
            return None
        return {"params": merge(fixed, self.ema), **self.extra}


def split_trained(params: PyTree, trainable: Callable[[str], Any]) -> tuple[PyTree, PyTree]:
    """The trained parameters and the others, two parts of the tree `params` (boxed or not).

    Raises:
      ValueError: none is trained.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    trained = {path: leaf for path, leaf in flat.items() if np.any(trainable(path))}
    if not trained:
        raise ValueError(
            f"expected parameters to train, found none among the {len(flat)} of the model;"
            " correct the stage's `trainable` or train.optimizer.parts"
        )
    fixed = {path: leaf for path, leaf in flat.items() if path not in trained}
    unflatten = functools.partial(traverse_util.unflatten_dict, sep="/")
    return unflatten(trained), unflatten(fixed)


def count_trained(params: PyTree, trainable: Callable[[str], Any]) -> int:
    """How many numbers of parameters are trained; of stacked ones, those of the trained layers.

    Args:
      params: arrays or their shapes.
      trainable: as `TrainConfig.trainable` gives it.
    """
    count = 0
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        is_trained = np.asarray(trainable(path))
        count += math.prod(leaf.shape) * np.count_nonzero(is_trained) // is_trained.size
    return count


def merge(fixed: PyTree, trained: PyTree) -> PyTree:
    """The tree of which `split_trained` made two."""
    flat = [traverse_util.flatten_dict(part, sep="/") for part in (fixed, trained)]
    return traverse_util.unflatten_dict(flat[0] | flat[1], sep="/")


def abstract_state(
    stage: Stage, config: TrainConfig, mesh: Mesh, rules: Rules
) -> tuple[TrainState, PyTree]:
    """Shapes, dtypes and shardings of the state and of `fixed`; nothing is allocated.

    The optimizer's moments and the averages are sharded as their parameters are.

    Returns:
      Trees of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: nothing is trained, or a part of the config that no parameter belongs to.
    """

    def init(key: jax.Array) -> tuple[TrainState, PyTree]:
        return _assemble(_initial_variables(stage, config, key), stage, config)

    state, fixed = abstract_params(init, mesh, rules, abstract_key())
    paths = traverse_util.flatten_dict(merge(fixed, state.params), sep="/")
    parts = config.optimizer.parts
    unused = {part.pattern for part in parts} - {part_of(path, parts).pattern for path in paths}
    if unused:
        raise ValueError(
            "train.optimizer.parts: expected patterns of parameters' whole paths, found"
            f" {', '.join(sorted(unused))}, which no parameter has or an earlier part takes;"
            " `internvideo-jax train --dry_run` without it shows all paths"
        )
    return state, fixed


def abstract_frozen(stage: Stage, mesh: Mesh, rules: Rules) -> PyTree:
    """Shapes, dtypes and shardings of the stage's frozen variables; nothing is allocated."""
    return abstract_params(stage.init_frozen, mesh, rules, abstract_key())


def unsplit(stage: Stage, mesh: Mesh, rules: Rules) -> list[str]:
    """As `parallel.sharding.unsplit_dimensions`, of all variables of a stage."""
    with nn.logical_axis_rules(()):
        boxed = [jax.eval_shape(init, abstract_key()) for init in (stage.init, stage.init_frozen)]
    return [note for tree in boxed for note in unsplit_dimensions(tree, mesh, rules)]


def abstract_key() -> jax.ShapeDtypeStruct:
    """The shape of a random key; a real one would be put on the mesh, which may be absent."""
    key: jax.ShapeDtypeStruct = jax.eval_shape(lambda: jax.random.key(0))
    return key


def create_state(
    stage: Stage, config: TrainConfig, mesh: Mesh, rules: Rules
) -> tuple[TrainState, PyTree]:
    """The state at step 0 and `fixed`: initial weights, or those of `stage.load_initial`.

    Raises:
      ValueError: what `stage.load_initial` returns has another structure or other shapes.
    """
    target = abstract_state(stage, config, mesh, rules)
    # The steps fold their number into the same key; init's draws are folded apart from them.
    key = jax.random.fold_in(jax.random.key(config.seed), np.uint32(2**32 - 1))
    init = functools.partial(_initial_variables, stage, config)
    initial = init_sharded(init, mesh, rules, key)
    loaded = stage.load_initial(initial)
    _check_fits(initial, loaded)
    # Orbax and converted files may give other shardings; a no-op otherwise.
    loaded = jax.device_put(loaded, jax.tree.map(lambda x: x.sharding, initial))

    with nn.logical_axis_rules(()):
        boxes = jax.tree.structure(jax.eval_shape(init, key))
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(initial)]

    def finish(variables: Variables) -> tuple[TrainState, PyTree]:
        leaves = zip(jax.tree.leaves(variables), dtypes, strict=True)
        boxed = jax.tree.unflatten(boxes, [leaf.astype(dtype) for leaf, dtype in leaves])
        unboxed: tuple[TrainState, PyTree] = nn.unbox(_assemble(boxed, stage, config))
        return unboxed

    out_shardings = jax.tree.map(lambda x: x.sharding, target)
    made: tuple[TrainState, PyTree] = jax.jit(finish, out_shardings=out_shardings)(loaded)
    return made


def load_frozen(stage: Stage, mesh: Mesh, rules: Rules) -> PyTree:
    """The stage's frozen variables, checked against what it announced.

    Raises:
      ValueError: structure or shapes differ.
    """
    expected = abstract_frozen(stage, mesh, rules)
    frozen = stage.load_frozen(mesh, rules)
    _check_fits(expected, frozen)
    return frozen


def _initial_variables(stage: Stage, config: TrainConfig, key: jax.Array) -> Variables:
    """`stage.init` with the kernels that are not trained in half precision, unless in float32."""
    variables = stage.init(key)
    if config.frozen_dtype == "float32":
        return variables
    trainable = config.trainable(stage)

    def cast(path: str, leaf: jax.Array) -> jax.Array:
        is_kept = np.any(trainable(path)) or not path.endswith(("kernel", "embedding"))
        return leaf if is_kept else leaf.astype(jnp.bfloat16)

    return {**variables, "params": map_paths(cast, variables["params"])}


def _assemble(variables: Variables, stage: Stage, config: TrainConfig) -> tuple[TrainState, PyTree]:
    """The state and `fixed` of boxed variables."""
    trained, fixed = split_trained(variables["params"], config.trainable(stage))
    state = TrainState(
        step=jnp.int32(0),
        params=trained,
        opt_state=config.unit_optimizer(stage).init(trained),
        extra={name: value for name, value in variables.items() if name != "params"},
        # Copies: a donated buffer may not belong to two arrays.
        ema=None if config.ema_decay is None else jax.tree.map(jnp.copy, trained),
        bad_steps=jnp.int32(0),
    )
    if config.frozen_dtype == "int8":
        flat = traverse_util.flatten_dict(fixed, sep="/")
        fixed = traverse_util.unflatten_dict(int8.quantize_kernels(flat), sep="/")
    return state, fixed


def _check_fits(expected: PyTree, found: PyTree) -> None:
    flat_expected, flat_found = (
        {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves}
        for leaves in map(jax.tree.leaves_with_path, (expected, found))
    )
    wrong = [
        f"{name}: expected {flat_expected.get(name, 'nothing')},"
        f" found {flat_found.get(name, 'nothing')}"
        for name in sorted(flat_expected.keys() | flat_found.keys())
        if flat_expected.get(name) != flat_found.get(name)
    ]
    if wrong:
        raise ValueError(
            f"{len(wrong)} loaded arrays do not fit the stage's config:\n  " + "\n  ".join(wrong)
        )
