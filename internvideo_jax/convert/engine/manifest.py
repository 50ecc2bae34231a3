"""Proof of a conversion without weights: manifests list a checkpoint's keys and shapes."""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

from internvideo_jax.convert.engine.plan import Plan, plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.convert.engine.upstream import config_from_upstream
from internvideo_jax.files import read_json


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Keys and shapes of a checkpoint and the constructor options of the model they belong to."""

    name: str
    shapes: dict[str, Shape]
    options: dict[str, Any]


def read_manifest(path: str | Path) -> Manifest:
    """Reads `{"checkpoint": name, "config": {option: value}, "tensors": {key: shape}}`.

    Raises:
      ValueError: not such a JSON file.
    """
    path = Path(path)
    try:
        content = read_json(path)
    except OSError as error:
        raise ValueError(f"expected a manifest at {path}, found: {error.strerror}") from None
    tensors, config = (
        content.get(name) if isinstance(content, dict) else None for name in ("tensors", "config")
    )
    if not isinstance(tensors, dict) or not isinstance(config, dict):
        raise ValueError(
            f"expected a manifest with `tensors` (key to shape) and `config` in {path}, found"
            " something else"
        )
    for key, shape in tensors.items():
        if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"{path}: expected the shape of {key}, found {str(shape)[:80]}")
    shapes = {key: tuple(shape) for key, shape in tensors.items()}
    return Manifest(str(content.get("checkpoint", path.stem)), shapes, config)


def plan_manifest(manifest: Manifest) -> Plan:
    """Plans the conversion that a manifest describes; nothing is allocated.

    The manifest's own config is taken for the truth, not what its shapes suggest.

    Raises:
      CheckpointMisfit: keys are missing, extra or misshapen; all are listed.
      ValueError: keys or options of a model that is not known here.
    """
    found = recognize(manifest.shapes)
    return plan(found, config_from_upstream(found.kind, manifest.options))


def describe(manifest: Manifest, made: Plan) -> str:
    """One line: keys consumed, keys ignored by which rule, parameters filled."""
    ignored = ", ".join(f"{n} by '{why}'" for why, n in Counter(made.ignored.values()).items())
    tied = f", {len(made.tied)} of them the same as others" if made.tied else ""
    used = (made.names[key] for key in made.loaded_keys if key not in made.tied)
    numbers = sum(math.prod(manifest.shapes[name]) for name in used)
    return (
        f"{manifest.name}: total as {made.architecture}: {len(made.loaded_names)} of"
        f" {len(manifest.shapes)} keys consumed{tied}, {len(made.ignored)} ignored"
        f"{f' ({ignored})' if ignored else ''}, {len(made.targets)} parameters filled"
        f" ({numbers:,} numbers)"
    )
