"""Proof of a conversion without weights: manifests list a checkpoint's keys and shapes."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from internvideo_jax.convert.engine.plan import Plan, plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.convert.engine.upstream import config_from_upstream, infer_config
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


def read_manifests(paths: str) -> tuple[Manifest, ...]:
    """Reads the manifest of a file, or those of several that make one model: "A.json+B.json".

    Raises:
      ValueError: as `read_manifest`.
    """
    is_one = Path(paths).is_file()
    return tuple(read_manifest(path) for path in ([paths] if is_one else paths.split("+")))


def plan_manifest(*manifests: Manifest) -> Plan:
    """Plans the conversion that manifests describe; nothing is allocated.

    The manifest's own config is taken for the truth, not what its shapes suggest. Of the files of
    several it is the last one's, and what they hold must be its model, but for the size and length
    of clips.

    Raises:
      CheckpointMisfit: keys are missing, extra or misshapen; all are listed.
      ValueError: keys or options of a model that is not known here, or files of another model.
    """
    found = recognize(*(manifest.shapes for manifest in manifests))
    options = manifests[-1].options
    config = config_from_upstream(found.kind, options)
    if len(manifests) == 1:
        return plan(found, config)
    source = infer_config(found, stored=options)
    video = found.family.preprocessing(config).require_video()
    clips = {"num_frames": video.num_frames, "image_size": video.image_size}
    if found.family.retarget(source, clips) != config:
        raise ValueError(
            f"expected files of the model that {manifests[-1].name} describes"
            f" ({found.family.describe(config)}), found those of another"
            f" ({found.family.describe(source)})"
        )
    return plan(found, source, target=config)


def describe(manifests: Manifest | Sequence[Manifest], made: Plan) -> str:
    """One line: keys consumed, keys ignored by which rule, parameters filled."""
    if isinstance(manifests, Manifest):
        manifests = (manifests,)
    ignored = ", ".join(f"{n} by '{why}'" for why, n in Counter(made.ignored.values()).items())
    tied = f", {len(made.tied)} of them the same as others" if made.tied else ""
    used = [made.sources[key] for key in made.loaded_keys if key not in made.tied]
    numbers = sum(math.prod(manifests[file].shapes[name]) for file, name in used)
    name = " + ".join(manifest.name for manifest in manifests)
    keys = sum(len(manifest.shapes) for manifest in manifests)
    left = keys - len(made.sources)
    replaced = f", {left} replaced by other files" if left else ""
    return (
        f"{name}: total as {made.architecture}: {len(made.loaded_names)} of {keys} keys"
        f" consumed{tied}{replaced}, {len(made.ignored)} ignored"
        f"{f' ({ignored})' if ignored else ''}, {len(made.targets)} parameters filled"
        f" ({numbers:,} numbers)"
    )
