"""Proof of a conversion without weights: manifests list a checkpoint's keys and shapes."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvideo_jax.convert.engine.plan import Plan, plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.convert.engine.upstream import config_from_upstream


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
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"expected a manifest at {path}, found: {error.strerror}") from None
    try:
        content = json.loads(text)
        tensors, config = content["tensors"], content["config"]
        shapes = {str(key): tuple(int(n) for n in shape) for key, shape in tensors.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"expected a manifest with `tensors` (key to shape) and `config` in {path}, found"
            f" something else ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(config, Mapping):
        raise ValueError(f"expected the options of a model as `config` in {path}, found {config!r}")
    return Manifest(str(content.get("checkpoint", path.stem)), shapes, dict(config))


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
