"""Does a converted model compute what the original computes? Reference activations say.

A reference file is a `.safetensors` file with inputs `in/*` and what the original model made of
them, `out/*`: `out/logits`, `out/hidden/blocks.3`, ... It may hold parameters too, which are not
read here.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvideo_jax.convert.engine.family import all_families, family_of
from internvideo_jax.convert.engine.upstream import architecture_of
from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.convert.files.safetensors_file import open_safetensors_file

TOLERANCE = 1e-5

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Inputs of a model and what the original made of them, by names without `in/` and `out/`.

    Attributes:
      inputs: arrays, as PyTorch has them (videos with channels where `Recipe.channel_axis` says).
      outputs: arrays.
      train_mode: whether the original ran in train mode (batch norm with batch statistics).
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    train_mode: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the inputs of a reference are run through a model of one architecture.

    Attributes:
      inputs: names of those that it needs.
      run: of (module, variables, prepared inputs, reference): values by name, of which those that
        the reference has are compared. Is traced.
      prepare: from a reference's inputs to what `run` gets, outside of what is traced.
      hooks: (pattern of a submodule's path in the original, name of its output in references).
      outputs: names of what the original returns, in its order.
      other_names: names that some references have for the inputs, and those meant.
      channel_axis: axis of the channels in the videos that the original takes.
    """

    inputs: tuple[str, ...]
    run: Callable[[Any, Arrays, Arrays, Reference], Arrays]
    prepare: Callable[[Arrays], Arrays] = lambda inputs: inputs
    hooks: tuple[tuple[str, str], ...] = ()
    outputs: tuple[str, ...] = ()
    other_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    channel_axis: int = 1


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one output agrees with its reference.

    Attributes:
      name: name of the output.
      max_error: largest absolute difference; infinity for another shape or a NaN.
      scale: largest absolute value of the reference.
      allowed: largest difference that passes.
      problem: what cannot be expressed as a difference, or nothing.
    """

    name: str
    max_error: float
    scale: float
    allowed: float
    problem: str = ""

    @property
    def relative_error(self) -> float:
        """Error relative to the scale."""
        return self.max_error / self.scale if self.scale else self.max_error

    @property
    def ok(self) -> bool:
        """Whether the output agrees."""
        return not self.problem and self.max_error <= self.allowed


def load_reference(path: str | Path) -> Reference:
    """Reads a reference file.

    Raises:
      CheckpointError: absent, not a safetensors file, or one without `in/` and `out/`.
    """
    try:
        file = open_safetensors_file(Path(path))
    except OSError as error:
        raise CheckpointError(
            f"expected a .safetensors file of reference activations at {path}, found:"
            f" {error.strerror}"
        ) from None

    def group(prefix: str) -> dict[str, np.ndarray]:
        names = [name for name in file if name.startswith(prefix)]
        return {name.removeprefix(prefix): np.array(file[name].read()) for name in names}

    inputs, outputs = group("in/"), group("out/")
    if not inputs or not outputs:
        raise CheckpointError(
            f"expected tensors in/* and out/* in {path}, found {len(inputs)} and {len(outputs)};"
            " this is no file of reference activations"
        )
    config = json.loads(file.metadata.get("config", "{}"))
    return Reference(inputs, outputs, bool(config.get("train_mode", False)))


def find_recipe(architecture: str) -> Recipe:
    """How models of an architecture are verified.

    Raises:
      ValueError: there is no recipe for it.
    """
    recipe = family_of(architecture).recipes.get(architecture)
    if recipe is None:
        known = sorted({name for family in all_families() for name in family.recipes})
        raise ValueError(
            f"expected a model that can be verified ({', '.join(known)}), found {architecture}"
        )
    return recipe


def run_reference(model: Any, reference: Reference) -> dict[str, np.ndarray]:
    """Runs a reference's inputs through a model, at the highest matmul precision.

    Args:
      model: has a module and variables, as a `saved_model.SavedModel`.
      reference: what to run; the architecture's recipe says which inputs it needs.

    Returns:
      Our values for those of the reference's outputs that are known, in their shapes.

    Raises:
      ValueError: an architecture for which there is no recipe, or a missing input.
    """
    architecture = architecture_of(model.module.config)
    recipe = find_recipe(architecture)
    given = {recipe.other_names.get(name, name): x for name, x in reference.inputs.items()}
    if not set(recipe.inputs) <= given.keys():
        raise ValueError(
            f"expected inputs {', '.join(recipe.inputs)} for {architecture}, found"
            f" {', '.join(reference.inputs)}; this reference belongs to another model"
        )
    inputs = recipe.prepare(given)

    def run(variables: Arrays, inputs: Arrays) -> Arrays:
        values = recipe.run(model.module, variables, inputs, reference)
        return {name: value for name, value in values.items() if name in reference.outputs}

    with jax.default_matmul_precision("highest"):
        values = jax.jit(run)(model.variables, inputs)
    return {name: np.asarray(value) for name, value in values.items()}


def compare(
    values: Mapping[str, np.ndarray],
    reference: Reference,
    tolerance: float = TOLERANCE,
) -> list[Comparison]:
    """Compares our values with a reference's outputs of the same names.

    Args:
      values: from `run_reference`.
      reference: the same that was run.
      tolerance: largest error of a floating output relative to its scale; others must be equal.
    """
    rows = []
    for name, ours in values.items():
        theirs = reference.outputs[name]
        inexact = theirs.dtype.kind not in "iub"
        wide = theirs.astype(np.float64)
        scale = float(np.abs(wide).max(initial=0.0))
        error, problem = np.inf, _problem(ours, wide)
        if not problem:
            error = float(np.abs(ours.astype(np.float64) - wide).max(initial=0.0))
        allowed = tolerance * scale if inexact else 0.0
        rows.append(Comparison(name, error, scale, allowed, problem))
    return rows


def _problem(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Why two outputs cannot be compared, or nothing."""
    if ours.shape != theirs.shape:
        return f"expected shape {theirs.shape}, found {ours.shape}"
    for whose, values in (("the model's", ours.astype(np.float64)), ("the reference's", theirs)):
        if count := int((~np.isfinite(values)).sum()):
            return f"{count} of {whose} {values.size} values are not finite"
    return ""


def format_table(rows: Iterable[Comparison], unchecked: Collection[str]) -> str:
    """The comparisons as lines of text, and what was not compared."""
    lines = [f"{'output':<34}{'max error':>11}{'scale':>11}{'relative':>11}  "]
    lines += [
        f"{row.name:<34}{row.max_error:>11.3g}{row.scale:>11.3g}{row.relative_error:>11.2g}  "
        + ("ok" if row.ok else f"FAILED ({row.problem or f'allowed {row.allowed:.3g}'})")
        for row in rows
    ]
    if unchecked:
        lines.append(f"not checked: {', '.join(sorted(unchecked))}")
    return "\n".join(line.rstrip() for line in lines)
