"""What a complete run leaves: its models, which say what they were trained by, and a loss curve."""

import datetime
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from internvideo_jax import __version__
from internvideo_jax.files import is_full, no_space
from internvideo_jax.training.checkpoints import reason
from internvideo_jax.training.metrics import (
    LOSS_CURVE,
    METRICS,
    Progress,
    plot_losses,
    read_metrics,
)
from internvideo_jax.training.stage import PyTree, Stage, Variables
from internvideo_jax.training.state import TrainState

MODEL = "model"
MODEL_EMA = "model_ema"


class RunOutputError(OSError):
    """An output of a complete run that cannot be written."""


def final_metrics(workdir: Path) -> dict[str, float]:
    """The loss and the evaluations of the last step that was logged; those that are finite."""
    lines = read_metrics(workdir / METRICS)
    last = [line for line in lines if line["step"] == lines[-1]["step"]]
    return {
        name: value
        for line in last
        for name, value in line.items()
        if (name == "loss" or "/" in name) and value is not None and math.isfinite(value)
    }


def training_metadata(origin: Mapping[str, Any], steps: int, workdir: Path) -> dict[str, Any]:
    """The metadata of a model that tell of its training.

    Args:
      origin: JSON-ready entries, as `loop.train` takes them.
      steps: of the run.
      workdir: its folder.
    """
    training = {
        **origin,
        "steps": steps,
        "metrics": final_metrics(workdir),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "internvideo_jax": __version__,
    }
    return {"training": training}


def write_missing(
    stage: Stage,
    state: TrainState,
    fixed: PyTree,
    workdir: Path,
    metadata: Mapping[str, Any],
    progress: Progress,
) -> bool:
    """Makes those outputs of a complete run that are not there; returns whether there were such."""
    models = {MODEL: state.variables(fixed), MODEL_EMA: state.averaged_variables(fixed)}
    missing = {
        name: variables
        for name, variables in models.items()
        if variables is not None and not (workdir / name).exists()
    }
    for name, variables in missing.items():
        progress.begin(f"saving {name}", aloud=True)
        _save_model(stage, variables, workdir / name, metadata)
    is_drawn = (workdir / LOSS_CURVE).exists()
    if jax.process_index() == 0 and not is_drawn:
        plot_losses(workdir / METRICS, workdir / LOSS_CURVE)
    return bool(missing) or not is_drawn


def _save_model(
    stage: Stage, variables: Variables, target: Path, metadata: Mapping[str, Any]
) -> None:
    """Writes a model so that the directory is whole or absent."""
    partial = target.with_name(f".{target.name}.partial")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("will save a model")
    try:
        stage.save(variables, partial, metadata)
    # The file system's errors come as OSError, or as ValueError from TensorStore.
    except (OSError, ValueError) as error:
        if jax.process_index() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
        why = no_space(target, size) if is_full(error) else reason(error)
        raise RunOutputError(
            f"cannot write {target}: {why}. All steps are done: make room and start the same"
            " command again to write what is missing"
        ) from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("saved the model")
    if jax.process_index() == 0:
        partial.rename(target)
