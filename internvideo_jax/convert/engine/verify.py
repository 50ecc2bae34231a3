"""Does a converted model compute what the original computes? Reference activations say.

A reference file is a `.safetensors` file with inputs `in/*` and what the original model made of
them, `out/*`: `out/logits`, `out/hidden/blocks.3`, ... It may hold parameters too, which are not
read here.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from internvideo_jax import models
from internvideo_jax.convert.files.checkpoint import CheckpointError
from internvideo_jax.convert.files.safetensors_file import open_safetensors_file
from internvideo_jax.objectives.classification import soft_cross_entropy

TOLERANCE = 1e-5

Arrays = dict[str, Any]


class Model(Protocol):
    """What this module needs of a model; `saved_model.SavedModel` is one."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def variables(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Reference:
    """Inputs of a model and what the original made of them, by names without `in/` and `out/`.

    Attributes:
      inputs: arrays, videos as PyTorch has them, `[B, 3, T, H, W]`.
      outputs: arrays.
      train_mode: whether the original ran in train mode (batch norm with batch statistics).
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    train_mode: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one output agrees with its reference.

    Attributes:
      name: name of the output.
      max_error: largest absolute difference; infinity for another shape or a NaN.
      scale: largest absolute value of the reference.
      allowed: largest difference that passes.
    """

    name: str
    max_error: float
    scale: float
    allowed: float

    @property
    def relative_error(self) -> float:
        """Error relative to the scale."""
        return self.max_error / self.scale if self.scale else self.max_error

    @property
    def ok(self) -> bool:
        """Whether the output agrees."""
        return self.max_error <= self.allowed


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


def run_reference(model: Model, reference: Reference) -> dict[str, np.ndarray]:
    """Runs a reference's inputs through a model, at the highest matmul precision.

    Args:
      model: module and variables.
      reference: what to run. Inputs `video` `[B, 3, T, H, W]`; for students also `mask` `[B, N]`,
        true where a token is dropped; `soft_target` `[B, C]` for a classifier's loss.

    Returns:
      Our values for those of the reference's outputs that are known, in their shapes.

    Raises:
      ValueError: an architecture for which there is no recipe, or a missing input.
    """
    recipe = _RECIPES.get(type(model.module))
    if recipe is None:
        raise ValueError(
            f"expected a model that can be verified ({', '.join(c.__name__ for c in _RECIPES)}),"
            f" found {type(model.module).__name__}"
        )
    inputs: Arrays = dict(reference.inputs)
    needed = {"video", "mask"} if recipe is _run_student else {"video"}
    if not needed <= inputs.keys():
        raise ValueError(
            f"expected inputs {', '.join(sorted(needed))} for {type(model.module).__name__}, found"
            f" {', '.join(inputs)}; this reference belongs to another model"
        )
    inputs["video"] = np.moveaxis(inputs["video"], 1, -1)
    if "mask" in inputs:
        inputs["kept"] = kept_tokens(inputs.pop("mask"))

    def run(variables: Arrays, inputs: Arrays) -> Arrays:
        values = recipe(model.module, variables, inputs, reference)
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
        error = np.inf
        if ours.shape == theirs.shape:
            error = float(np.abs(ours.astype(np.float64) - wide).max(initial=0.0))
        allowed = tolerance * scale if inexact else 0.0
        rows.append(Comparison(name, np.inf if np.isnan(error) else error, scale, allowed))
    return rows


def kept_tokens(mask: np.ndarray) -> np.ndarray:
    """Ascending indices `[B, K]` of the tokens that a mask `[B, N]`, true where dropped, keeps.

    Raises:
      ValueError: the samples keep different numbers of tokens.
    """
    kept = ~mask.astype(bool)
    counts = sorted({int(n) for n in kept.sum(1)})
    if len(counts) != 1:
        raise ValueError(
            f"expected a mask that keeps equally many tokens of each sample, found {counts}"
        )
    return np.nonzero(kept)[1].reshape(len(kept), -1)


def _hidden(
    module: Any,
    variables: Arrays,
    video: jax.Array,
    wanted: Collection[str],
    kept: jax.Array | None = None,
) -> Arrays:
    """Intermediate values of the encoder inside a model, as far as they are wanted."""
    if not any(name.startswith("hidden/") for name in wanted):
        return {}
    encoder, variables = models.video_encoder(module, variables)
    blocks = (re.fullmatch(r"hidden/blocks\.(\d+)", name) for name in wanted)
    layers = tuple(sorted(i for m in blocks if m and (i := int(m[1])) < encoder.config.depth))
    output, state = encoder.apply(
        variables,
        video,
        kept,
        hidden_layers=layers,
        capture_intermediates=lambda module, _: module.name == "patch_embed",
    )
    steps = video.shape[1] // encoder.config.tubelet_size
    (patches,) = state["intermediates"]["patch_embed"]["__call__"]
    values = {f"hidden/blocks.{layer}": output.hidden_states[i] for i, layer in enumerate(layers)}
    values["hidden/clip_projector"] = output.pooled
    values["hidden/patch_embed"] = patches.reshape(len(video), steps, -1, patches.shape[-1])
    return values


def _run_encoder(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    return _hidden(module, variables, inputs["video"], reference.outputs)


def _run_classifier(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    output, state = module.apply(
        variables,
        inputs["video"],
        deterministic=not reference.train_mode,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: module.name in ("fc_norm", "down_norm"),
        rngs={"dropout": jax.random.key(0)},
    )
    values = _hidden(module, variables, inputs["video"], reference.outputs)
    for name, captured in state["intermediates"].items():
        values[f"hidden/{name}"] = captured["__call__"][0]
    if module.config.merge_norm != "ln" and "hidden/down_norm" in values:
        # Upstream's batch norm sees channels before rows.
        values["hidden/down_norm"] = values["hidden/down_norm"].swapaxes(1, 2)
    for name, array in state.get("batch_stats", {}).get("down_norm", {}).items():
        values[f"buffer_after/down_norm.running_{name}"] = array
    values["logits"] = output.logits
    if "soft_target" in inputs:
        values["loss_soft_ce"] = soft_cross_entropy(output.logits, inputs["soft_target"])
    return values


def _run_student(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    output = module.apply(variables, inputs["video"], inputs["kept"])
    values = _hidden(module, variables, inputs["video"], reference.outputs, inputs["kept"])
    values |= {"clip_middle": output.clip_middle, "clip_final": output.clip_final}
    return values if output.mae is None else values | {"mae": output.mae}


def _run_teacher(module: Any, variables: Arrays, inputs: Arrays, reference: Reference) -> Arrays:
    video = inputs["video"]
    output = module.apply(variables, video)
    clips = video.reshape(-1, 1, *video.shape[2:]) if module.config.per_frame else video
    values = _hidden(module, variables, clips, reference.outputs)
    if "hidden/patch_embed" in values:
        # One row per frame either way.
        patches = values["hidden/patch_embed"]
        values["hidden/patch_embed"] = patches.reshape(len(video), -1, *patches.shape[2:])
    values |= {"norm_clip_middle": output.middle, "norm_clip_final": output.final}
    return values | {"attn": output.attention}


def _run_videomae_teacher(
    module: Any, variables: Arrays, inputs: Arrays, reference: Reference
) -> Arrays:
    values = {}
    for name, as_released in (("correct", False), ("as_released", True)):
        encoder = dataclasses.replace(module.config.encoder, as_released=as_released)
        variant = type(module)(dataclasses.replace(module.config, encoder=encoder))
        values[f"norm_mae/{name}"] = variant.apply(variables, inputs["video"], inputs.get("kept"))
    return values


_Recipe = Callable[[Any, Arrays, Arrays, Reference], Arrays]

_RECIPES: dict[type[nn.Module], _Recipe] = {
    models.VideoViT: _run_encoder,
    models.VideoClassifier: _run_classifier,
    models.Stage1Student: _run_student,
    models.DistillStudent: _run_student,
    models.Teacher: _run_teacher,
    models.VideoMAETeacher: _run_videomae_teacher,
}


def format_table(rows: Iterable[Comparison], unchecked: Collection[str]) -> str:
    """The comparisons as lines of text, and what was not compared."""
    lines = [f"{'output':<34}{'max error':>11}{'scale':>11}{'relative':>11}  "]
    lines += [
        f"{row.name:<34}{row.max_error:>11.3g}{row.scale:>11.3g}{row.relative_error:>11.2g}  "
        + ("ok" if row.ok else f"FAILED (allowed {row.allowed:.3g})")
        for row in rows
    ]
    if unchecked:
        lines.append(f"not checked: {', '.join(sorted(unchecked))}")
    return "\n".join(line.rstrip() for line in lines)
