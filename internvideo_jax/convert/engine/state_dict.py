"""State dicts to flax variables and back by a plan, one parameter at a time or whole."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from internvideo_jax.convert.engine.plan import Plan

DTYPES = ("float32", "bfloat16", "float16")


def parameters(
    plan: Plan, read: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Makes each parameter, or each layer of a stacked one, in the checkpoint's order.

    Args:
      plan: what to make.
      read: the tensor of a key, by its name in the checkpoint. Nothing made of it is kept here.

    Returns:
      Path of the parameter, position on its first axis (None if it is not stacked), numbers.

    Raises:
      ValueError: tensors that should be equal are not; all are listed when everything is read.
    """
    ties = defaultdict(list)
    for key, to in plan.tied.items():
        ties[to].append(key)
    different = []
    for a in plan.loaded:
        arrays = [read(plan.names[key]) for key in a.keys]
        for key, array in zip(a.keys, arrays, strict=True):
            different += [
                f"{plan.names[other]} and {plan.names[key]}"
                for other in ties.pop(key, ())
                if not np.array_equal(read(plan.names[other]), array)
            ]
        made = a.transform.forward(arrays, a.shapes)
        for target, parameter in zip(a.targets, made, strict=True):
            if target in plan.adaptations:
                parameter = plan.adaptations[target].apply(parameter)
            yield target, a.index, parameter
    if different:
        raise ValueError(
            f"expected tensors of the same numbers, found different ones: {', '.join(different)};"
            " the model has one parameter for both"
        )
    for a, value in plan.initial:
        for target, shape in zip(a.targets, a.shapes, strict=True):
            yield target, a.index, value.make(shape)


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
    found: dict[str, dict[np.dtype, str]] = defaultdict(dict)
    fixed: dict[str, np.dtype] = {}
    for a in plan.loaded:
        names = [plan.names[key] for key in a.keys]
        dtypes_of = a.transform.dtypes or (None,) * len(a.targets)
        for target, dtype in zip(a.targets, dtypes_of, strict=True):
            if dtype is not None:
                fixed[target] = np.dtype(dtype)
                continue
            for name in names[:1] if a.transform.computes else names:
                found[target].setdefault(np.dtype(dtypes[name]), name)
    mixed = [kinds for kinds in found.values() if len(kinds) > 1]
    if mixed:
        listing = "; ".join(
            ", ".join(f"{name} is {dtype}" for dtype, name in kinds.items()) for kinds in mixed
        )
        raise ValueError(
            f"expected one dtype for all layers of a parameter, found {listing}; save the"
            " checkpoint in one dtype"
        )
    result = {target: next(iter(kinds)) for target, kinds in found.items()} | fixed
    commonest = Counter(result.values()).most_common(1)[0][0]
    return {target: result.get(target, commonest) for target in plan.targets}


def to_tree(state: Mapping[str, np.ndarray], plan: Plan) -> dict[str, Any]:
    """Flax variables of a state dict held in memory, in its own dtypes.

    Args:
      state: tensors by the keys that the plan was made from.
      plan: see `plan.plan`.
    """
    dtypes = target_dtypes(plan, {name: state[name].dtype for name in plan.loaded_names})
    flat = {target: np.empty(shape, dtypes[target]) for target, shape in plan.targets.items()}
    for target, index, array in parameters(plan, state.__getitem__):
        flat[target][... if index is None else index] = array
    return traverse_util.unflatten_dict(flat, sep="/")


def to_state_dict(variables: Mapping[str, Any], plan: Plan) -> dict[str, np.ndarray]:
    """State dict of flax variables, under the keys that the plan was made from.

    The transforms of rules being linear, this also turns a tree of gradients into gradients by key.
    Adapted parameters keep their new shape; ignored and tied tensors are absent.

    Args:
      variables: `{"params": ..., ["batch_stats": ...]}`; parameters may be left out.
      plan: the plan that made them, or `plan.export_plan`.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    flat = {target: np.asarray(array) for target, array in flat.items()}
    state = {}
    for a in (*plan.loaded, *(assignment for assignment, _ in plan.initial)):
        if not all(target in flat for target in a.targets):
            continue
        if a.transform.inverse is None:
            raise ValueError(
                f"{a.keys[0]} was changed ({a.transform.name}) and does not come back; use the plan"
                " that `plan.export_plan` makes"
            )
        arrays = [flat[target] for target in a.targets]
        if a.index is not None:
            arrays = [array[a.index] for array in arrays]
        for key, tensor in zip(a.keys, a.transform.inverse(arrays), strict=True):
            state[plan.names.get(key, plan.prefix + key)] = tensor
    return state
