"""One model whose weights are the means of several models' weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvideo_jax import saved_model
from internvideo_jax.config import to_dict
from internvideo_jax.files import atomic_directory
from internvideo_jax.models import ARCHITECTURES


def average_models(models: Sequence[str], output: Path) -> None:
    """Writes the mean of saved models, float32; two of them are in memory at a time.

    Runs of one start, or of one recipe with several seeds, often average to a better model than any
    of them.

    Args:
      models: folders of at least two models of one architecture, config, preprocessing and classes.
      output: does not exist yet, or is empty.

    Raises:
      FileExistsError: it does.
      ValueError: there are fewer than two, or they differ; says in what.
    """
    if len(models) < 2:
        raise ValueError(f"expected at least two models to average, found {len(models)}")
    with atomic_directory(output) as partial:
        first, total = _read(models[0]), None
        for path in models:
            model = _read(path)
            _check_alike(models[0], first, path, model)
            total = model.variables if total is None else jax.tree.map(_add, total, model.variables)
            # Its description is enough from here on.
            first = dataclasses.replace(first, variables={})
        mean = jax.tree.map(lambda x: x / np.float32(len(models)), total)
        names: dict[type, str] = {a.module_cls: name for name, a in ARCHITECTURES.items()}
        saved_model.save(
            partial,
            names[type(first.module)],
            first.config,
            first.preprocessing,
            mean,
            {"average_of": list(map(str, models))},
            tokenizer_files=first.tokenizer_files,
            classes=first.classes,
        )


def _read(path: str) -> saved_model.SavedModel:
    model = saved_model.load(path, dtype="float32", storage="float32")
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), model.variables)
    return dataclasses.replace(model, variables=variables)


def _add(total: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.add(total, x, out=total if total.flags.writeable else None)


def _check_alike(
    name: str, model: saved_model.SavedModel, other_name: str, other: saved_model.SavedModel
) -> None:
    """Raises ValueError naming what two models differ in."""

    def described(model: saved_model.SavedModel) -> dict[str, Any]:
        return {
            "architecture": type(model.module).__name__,
            "config": to_dict(model.config),
            "preprocessing": to_dict(model.preprocessing),
            "classes": model.classes,
            "tokenizer": {n: path.read_bytes() for n, path in model.tokenizer_files.items()},
        }

    mine, others = described(model), described(other)
    differing = [part for part in mine if mine[part] != others[part]]
    if differing:
        raise ValueError(
            f"expected models that are alike, found another {' and '.join(differing)} in"
            f" {other_name} than in {name}; average models of one recipe"
        )
