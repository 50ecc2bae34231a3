"""A complete account of how a checkpoint becomes a model, made from names and shapes alone."""

import dataclasses
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from internvideo_jax.convert.engine.adaptations import Adaptation
from internvideo_jax.convert.engine.rules import (
    ZEROS,
    Assignment,
    InitialValue,
    Table,
    assignments,
)
from internvideo_jax.convert.engine.transforms import Shape
from internvideo_jax.convert.families import internvideo2, internvl, videomae
from internvideo_jax.models import ARCHITECTURES, abstract_variables

TABLES: dict[str, Table] = {
    "video_vit": internvideo2.VIDEO_VIT,
    "video_classifier": internvideo2.VIDEO_CLASSIFIER,
    "stage1_student": internvideo2.STAGE1_STUDENT,
    "distill_student": internvideo2.DISTILL_STUDENT,
    "teacher": internvl.TEACHER,
    "videomae": videomae.VIDEOMAE,
    "videomae_teacher": videomae.VIDEOMAE_TEACHER,
}

# Every model here cuts clips into tubelets with this layer, so it shows where the model's keys lie.
ANCHOR = "patch_embed.proj.weight"

# Wrapper modules of training scripts, and what stage 2 and VideoMAE call the vision tower.
PREFIXES = ("", "module.", "backbone.", "encoder.", "vision_encoder.", "module.vision_encoder.")


class CheckpointMisfit(ValueError):
    """A checkpoint that is not wholly and exactly what a model needs.

    Attributes:
      missing: shapes of the keys that the model needs and the checkpoint lacks.
      extra: shapes of the keys that no rule uses or ignores.
      misshapen: (expected, found) shapes of the keys that have another shape.
    """

    def __init__(
        self,
        description: str,
        missing: Mapping[str, Shape],
        extra: Mapping[str, Shape],
        misshapen: Mapping[str, tuple[Shape, Shape]],
    ) -> None:
        self.missing, self.extra, self.misshapen = dict(missing), dict(extra), dict(misshapen)
        lines = [
            f"the checkpoint does not fit {description}: {len(missing)} keys missing,"
            f" {len(extra)} extra, {len(misshapen)} misshapen"
        ]
        lines += _listing("missing", {k: f"expected {list(v)}" for k, v in missing.items()})
        lines += _listing("extra", {k: f"found {list(v)}" for k, v in extra.items()})
        lines += _listing(
            "misshapen",
            {k: f"expected {list(s)}, found {list(f)}" for k, (s, f) in misshapen.items()},
        )
        lines.append("check that this is the right file, and the options that describe its model")
        super().__init__("\n".join(lines))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What each tensor of a checkpoint becomes; keys are canonical, without the file's prefix.

    Attributes:
      architecture: name in `models.ARCHITECTURES`.
      config: the model's config.
      targets: shape of each parameter by its path.
      names: a key as the checkpoint has it, by canonical key, in the file's order.
      loaded: parameters, or layers of them, that come from the checkpoint, in the file's order.
      initial: parameters, or layers of them, that start from a named value, and that value.
      ignored: reason why a key is not read, by canonical key.
      adaptations: changes to tensors before their transform, by canonical key.
    """

    architecture: str
    config: Any
    targets: dict[str, Shape]
    names: dict[str, str]
    loaded: tuple[Assignment, ...]
    initial: tuple[tuple[Assignment, InitialValue], ...]
    ignored: dict[str, str]
    adaptations: dict[str, Adaptation]

    @property
    def loaded_names(self) -> list[str]:
        """Names, in the checkpoint, of the tensors that are read."""
        return [self.names[key] for assignment in self.loaded for key in assignment.keys]

    def summary(self) -> str:
        """One line: tensors loaded, missing (always 0), and every other treatment by its rule."""
        parts = [f"{len(self.loaded_names)} tensors loaded", "0 missing"]
        parts += [f"{n} ignored ({why})" for why, n in Counter(self.ignored.values()).items()]
        parts += [f"{key}: {a.name}" for key, a in self.adaptations.items()]
        parts += [f"{a.target.split('/', 1)[1]}: {value.name}" for a, value in self.initial]
        return ", ".join(parts)

    def report(self) -> dict[str, Any]:
        """The same in full, JSON-ready, for a saved model's metadata."""
        ignored = defaultdict(list)
        for key, why in self.ignored.items():
            ignored[why].append(self.names[key])
        transforms = Counter(a.transform.name for a in self.loaded)
        return {
            "tensors_loaded": len(self.loaded_names),
            "parameters": len(self.targets),
            "prefix": self.prefix,
            "transforms": dict(transforms),
            "ignored": dict(ignored),
            "adapted": {self.names[key]: a.name for key, a in self.adaptations.items()},
            "initial_values": {a.target: value.name for a, value in self.initial},
        }

    @property
    def prefix(self) -> str:
        """What precedes the canonical keys in the checkpoint."""
        return key_prefix(self.names.values())


def plan(
    shapes: Mapping[str, Shape],
    architecture: str,
    config: Any,
    *,
    adaptations: Mapping[str, Adaptation] | None = None,
    new_head: bool = False,
) -> Plan:
    """Plans the conversion of a checkpoint; allocates nothing.

    Args:
      shapes: shape of every tensor of the checkpoint, by its key.
      architecture: name in `models.ARCHITECTURES`.
      config: config of that architecture.
      adaptations: changes to tensors, by canonical key (see `canonical_names`).
      new_head: leave a classifier's last layer in the checkpoint, if any, and start a new one.

    Raises:
      CheckpointMisfit: a key is missing, extra or misshapen; all of them are listed.
      ValueError: a checkpoint of another kind of model.
    """
    table = TABLES[architecture]
    names = canonical_names(shapes)
    adaptations = dict(adaptations or {})
    found = {key: tuple(shapes[name]) for key, name in names.items()}
    found |= {key: adaptation.shape for key, adaptation in adaptations.items()}
    ignored = {}
    if new_head:
        table = _with_new_head(table)
        ignored = {k: "head replaced by a new one" for k in found if k.startswith("head.")}

    loaded: list[Assignment] = []
    initial: list[tuple[Assignment, InitialValue]] = []
    missing: dict[str, Shape] = {}
    misshapen: dict[str, tuple[Shape, Shape]] = {}
    targets = target_shapes(architecture, config)
    for assignment in assignments(table, targets):
        expected = dict(zip(assignment.keys, assignment.source_shapes, strict=True))
        absent = {k: s for k, s in expected.items() if k not in found or k in ignored}
        if assignment.initial is not None and len(absent) == len(expected):
            initial.append((assignment, assignment.initial))
            continue
        loaded.append(assignment)
        missing |= absent
        misshapen |= {
            k: (s, found[k]) for k, s in expected.items() if k not in absent and found[k] != s
        }
    used = {key for assignment in loaded for key in assignment.keys}
    for key in found.keys() - used - ignored.keys():
        reason = next((rule.reason for rule in table.ignored if rule.matches(key)), None)
        if reason is not None:
            ignored[key] = reason
    extra = {k: s for k, s in found.items() if k not in used and k not in ignored}
    if missing or extra or misshapen:
        raise CheckpointMisfit(f"architecture {architecture!r}", missing, extra, misshapen)
    position = {key: i for i, key in enumerate(names)}
    return Plan(
        architecture,
        config,
        targets,
        names,
        tuple(sorted(loaded, key=lambda a: position[a.keys[0]])),
        tuple(initial),
        {key: ignored[key] for key in names if key in ignored},
        {key: change for key, change in adaptations.items() if key in used},
    )


def export_plan(architecture: str, config: Any, prefix: str = "") -> Plan:
    """The plan of a checkpoint that holds exactly what a model has, under `prefix`."""
    targets = target_shapes(architecture, config)
    loaded = assignments(TABLES[architecture], targets)
    names = {key: prefix + key for a in loaded for key in a.keys}
    return Plan(architecture, config, targets, names, loaded, (), {}, {})


def target_shapes(architecture: str, config: Any) -> dict[str, Shape]:
    """Shape of every variable of a model by its path, e.g. "params/encoder/cls_token"."""
    return dict(_target_shapes(architecture, config))


@functools.lru_cache(maxsize=64)
def _target_shapes(architecture: str, config: Any) -> tuple[tuple[str, Shape], ...]:
    # Tracing a model's initialisation takes a good part of a second.
    variables = abstract_variables(ARCHITECTURES[architecture].module_cls(config))
    flat = traverse_util.flatten_dict(variables, sep="/")
    return tuple((path, tuple(leaf.shape)) for path, leaf in flat.items())


def key_prefix(keys: Iterable[str]) -> str:
    """What precedes the model's own names in a checkpoint's keys.

    Raises:
      ValueError: no known prefix, or several; the keys are those of another model.
    """
    keys = list(keys)
    known = [prefix for prefix in PREFIXES if prefix + ANCHOR in keys]
    if len(known) == 1:
        return known[0]
    if not keys:
        raise ValueError("expected a checkpoint, found a file without any tensor; fetch it again")
    found = [key for key in keys if key.endswith(ANCHOR)]
    raise ValueError(
        f"expected a checkpoint with one tensor {ANCHOR!r}, alone or after one of"
        f" {', '.join(p for p in PREFIXES if p)}; found {found or 'none'} among"
        f" {len(keys)} keys such as {', '.join(keys[:3])}: this is another kind of model"
    )


def canonical_names(keys: Iterable[str]) -> dict[str, str]:
    """The checkpoint's keys by canonical key; keys without its prefix stay as they are.

    Raises:
      ValueError: a checkpoint of another kind of model, or two keys that become one.
    """
    keys = list(keys)
    prefix = key_prefix(keys)
    names: dict[str, str] = {}
    for key in keys:
        canonical = key.removeprefix(prefix)
        if canonical in names:
            raise ValueError(
                f"expected distinct keys, found {key!r} and {names[canonical]!r}, which are the"
                f" same without the prefix {prefix!r}; keep one of them"
            )
        names[canonical] = key
    return names


def _with_new_head(table: Table) -> Table:
    initial = {"params/head/kernel": NEW_HEAD, "params/head/bias": ZEROS}
    rules = tuple(
        dataclasses.replace(r, initial=initial[r.target]) if r.target in initial else r
        for r in table.rules
    )
    return dataclasses.replace(table, rules=rules)


def _new_head(shape: Shape) -> np.ndarray:
    # Upstream starts heads from N(0, 0.02) scaled by `init_scale`, 0.001.
    return np.random.default_rng(0).normal(0, 2e-5, shape).astype(np.float32)


NEW_HEAD = InitialValue("new head, untrained", _new_head)


def _listing(title: str, messages: Mapping[str, str]) -> list[str]:
    """Lines for keys and messages, one for all layers of which the same is said."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for key, message in messages.items():
        head, *rest = re.split(r"(?<=\.)(\d+)(?=\.)", key, maxsplit=1)
        number, tail = rest or ("-1", "")
        groups[head, tail, message].append(int(number))
    lines = []
    for (head, tail, message), numbers in groups.items():
        span = _ranges(numbers) if tail else ""
        lines.append(f"  {title:<10}{head}{span}{tail}  {message}")
    return lines


def _ranges(numbers: list[int]) -> str:
    """`7`, or `{0-3,5}`."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
