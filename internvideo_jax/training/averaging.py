"""One model whose weights are the means of several models' weights."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvideo_jax import saved_model
from internvideo_jax.config import to_dict
from internvideo_jax.files import atomic_directory
from internvideo_jax.models import ARCHITECTURES

# What is dropped at random; models before and after a training may differ in it.
_OF_TRAINING = ("drop_path_rate", "dropout_rate", "attention_dropout_rate")


def average_models(
    models: Sequence[str], output: Path, shares: Sequence[float] | None = None
) -> None:
    """Writes the mean of saved models, float32; two of them are in memory at a time.

    Runs of one start, or of one recipe with several seeds, often average to a better model than any
    of them. A model before and after fine-tuning, averaged, keeps more of what it knew before
    (WiSE-FT, https://arxiv.org/abs/2109.01903, whose alpha is the share of the one after).

    Args:
      models: folders of at least two models of one architecture, config (but for what is dropped in
        training), preprocessing and classes.
      output: does not exist yet, or is empty.
      shares: how much each of them counts, in proportion; None counts all alike.

    Raises:
      FileExistsError: it does.
      ValueError: there are fewer than two, they differ (says in what), or the shares are not as
        many numbers from 0 on, one of them above it.
    """
    if len(models) < 2:
        raise ValueError(f"expected at least two models to average, found {len(models)}")
    factors = _factors(models, shares)
    with atomic_directory(output) as partial:
        first, total = _read(models[0]), None
        for path, factor in zip(models, factors, strict=True):
            model = _read(path)
            _check_alike(models[0], first, path, model)
            scaled = jax.tree.map(lambda x, f=factor: x * np.float32(f), model.variables)
            total = scaled if total is None else jax.tree.map(_add, total, scaled)
            # Its description is enough from here on.
            first = dataclasses.replace(first, variables={})
        names: dict[type, str] = {a.module_cls: name for name, a in ARCHITECTURES.items()}
        saved_model.save(
            partial,
            names[type(first.module)],
            first.config,
            first.preprocessing,
            total or {},
            {"average_of": list(map(str, models)), "shares": factors},
            tokenizer_files=first.tokenizer_files,
            classes=first.classes,
        )


def _factors(models: Sequence[str], shares: Sequence[float] | None) -> list[float]:
    shares = [1.0] * len(models) if shares is None else list(shares)
    is_share = all(math.isfinite(share) and share >= 0 for share in shares)
    if len(shares) != len(models) or not is_share or not sum(shares):
        raise ValueError(
            f"expected a share of each of the {len(models)} models, numbers from 0 on of which one"
            f" is above it, found {', '.join(map(str, shares)) or 'none'}"
        )
    return [share / sum(shares) for share in shares]


def _read(path: str) -> saved_model.SavedModel:
    model = saved_model.load(path, dtype="float32", storage="float32")
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), model.variables)
    return dataclasses.replace(model, variables=variables)


def _without_chance(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config without what acts in training alone."""
    return {
        name: _without_chance(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _OF_TRAINING
    }


def _add(total: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.add(total, x, out=total if total.flags.writeable else None)


def _check_alike(
    name: str, model: saved_model.SavedModel, other_name: str, other: saved_model.SavedModel
) -> None:
    """Raises ValueError naming what two models differ in."""

    def described(model: saved_model.SavedModel) -> dict[str, Any]:
        return {
            "architecture": type(model.module).__name__,
            "config": _without_chance(to_dict(model.config)),
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
