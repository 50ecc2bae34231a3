"""State dicts to flax variables and back by a plan, one parameter at a time or whole."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from internvideo_jax.convert.engine.plan import Plan
from internvideo_jax.convert.engine.rules import Assignment

DTYPES = ("float32", "bfloat16", "float16")


def parameters(
    plan: Plan, read: Callable[[str], np.ndarray]
) -> Iterator[tuple[Assignment, np.ndarray]]:
    """Makes each parameter, or each layer of a stacked one, in the checkpoint's order.

    Args:
      plan: what to make.
      read: the tensor of a key, by its name in the checkpoint. Nothing made of it is kept here.
    """
    for assignment in plan.loaded:
        arrays = [read(plan.names[key]) for key in assignment.keys]
        for i, key in enumerate(assignment.keys):
            if key in plan.adaptations:
                arrays[i] = plan.adaptations[key].apply(arrays[i])
        yield assignment, assignment.transform.forward(arrays, assignment.shape)
    for assignment, value in plan.initial:
        yield assignment, value.make(assignment.shape)


def target_dtypes(plan: Plan, dtypes: Mapping[str, np.dtype]) -> dict[str, np.dtype]:
    """Dtype of each parameter: its tensors' own, or the file's commonest for an initial value.

    Raises:
      ValueError: tensors of another dtype than `DTYPES`, or different ones in one parameter.
    """
    odd = {name: np.dtype(dtypes[name]).name for name in plan.loaded_names}
    odd = {name: dtype for name, dtype in odd.items() if dtype not in DTYPES}
    if odd:
        listing = ", ".join(f"{name} is {dtype}" for name, dtype in odd.items())
        raise ValueError(
            f"expected tensors of {', '.join(DTYPES)}, found {listing}; save the checkpoint in one"
            " of these"
        )
    found: dict[str, dict[np.dtype, str]] = {}
    for assignment in plan.loaded:
        for key in assignment.keys:
            name = plan.names[key]
            found.setdefault(assignment.target, {}).setdefault(np.dtype(dtypes[name]), name)
    mixed = {target: kinds for target, kinds in found.items() if len(kinds) > 1}
    if mixed:
        listing = "; ".join(
            ", ".join(f"{name} is {dtype}" for dtype, name in kinds.items())
            for kinds in mixed.values()
        )
        raise ValueError(
            f"expected one dtype for all layers of a parameter, found {listing}; save the"
            " checkpoint in one dtype"
        )
    result = {target: next(iter(kinds)) for target, kinds in found.items()}
    commonest = Counter(result.values()).most_common(1)[0][0]
    return {target: result.get(target, commonest) for target in plan.targets}


def to_tree(state: Mapping[str, np.ndarray], plan: Plan) -> dict[str, Any]:
    """Flax variables of a state dict held in memory, in its own dtypes.

    Args:
      state: tensors by the keys that the plan was made from.
      plan: see `plan.plan`.
    """
    dtypes = target_dtypes(plan, {name: state[name].dtype for name in plan.names.values()})
    flat = {target: np.empty(shape, dtypes[target]) for target, shape in plan.targets.items()}
    for assignment, array in parameters(plan, state.__getitem__):
        flat[assignment.target][... if assignment.index is None else assignment.index] = array
    return traverse_util.unflatten_dict(flat, sep="/")


def to_state_dict(variables: Mapping[str, Any], plan: Plan) -> dict[str, np.ndarray]:
    """State dict of flax variables, under the keys that the plan was made from.

    Every transform being linear, this also turns a tree of gradients into gradients by key. Tensors
    that were adapted keep their new shape, ignored ones are absent.

    Args:
      variables: `{"params": ..., ["batch_stats": ...]}`; a collection may be left out.
      plan: the plan that made them, or `plan.export_plan`.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    flat = {target: np.asarray(array) for target, array in flat.items()}
    state = {}
    for assignment in (*plan.loaded, *(assignment for assignment, _ in plan.initial)):
        if assignment.target not in flat:
            continue
        array = flat[assignment.target]
        array = array if assignment.index is None else array[assignment.index]
        for key, tensor in zip(assignment.keys, assignment.transform.inverse(array), strict=True):
            state[plan.names.get(key, plan.prefix + key)] = tensor
    return state
