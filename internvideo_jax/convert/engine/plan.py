"""A complete account of how a checkpoint becomes a model, made from names and shapes alone."""

import dataclasses
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from internvideo_jax.convert.engine.adaptations import Adaptation, Inflation
from internvideo_jax.convert.engine.family import family_of
from internvideo_jax.convert.engine.misfit import CheckpointMisfit
from internvideo_jax.convert.engine.recognition import Recognized
from internvideo_jax.convert.engine.rules import (
    COUNTERS,
    Assignment,
    InitialValue,
    Table,
    assignments,
)
from internvideo_jax.convert.engine.transforms import Pattern, Shape, quantize
from internvideo_jax.convert.engine.upstream import architecture_of
from internvideo_jax.models import abstract_variables, build
from internvideo_jax.nn import int8

# Changes of which there are more are summed up.
_MAX_LISTED = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What each tensor of a checkpoint becomes; keys are canonical.

    Attributes:
      architecture: name in `models.ARCHITECTURES`.
      config: the model's config.
      targets: shape of each parameter by its path.
      names: a key as the checkpoint has it, by canonical key, in the file's order.
      loaded: parameters, or layers of them, that come from the checkpoint, in the file's order.
      initial: parameters, or layers of them, that start from a named value, and that value.
      ignored: reason why a key is not read, by canonical key.
      tied: the key that a key repeats, by canonical key.
      adaptations: changes to parameters after their transform, by path.
      sources: number of the file that a key comes from and the key in it, by canonical key.
    """

    architecture: str
    config: Any
    targets: dict[str, Shape]
    names: dict[str, str]
    loaded: tuple[Assignment, ...]
    initial: tuple[tuple[Assignment, InitialValue], ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    adaptations: Mapping[str, Adaptation] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)

    @property
    def loaded_keys(self) -> list[str]:
        """Canonical keys of the tensors that are read, tied ones included."""
        return [*dict.fromkeys(key for a in self.loaded for key in a.keys), *self.tied]

    @property
    def loaded_names(self) -> list[str]:
        """Their names in the checkpoint."""
        return [self.names[key] for key in self.loaded_keys]

    @property
    def changes(self) -> dict[str, str]:
        """What is done, beyond moving numbers, to the tensors that are read, by canonical key."""
        found: dict[str, str] = {}
        for a in self.loaded:
            done = [a.transform.name] if a.is_other_form else []
            done += [self.adaptations[t].name for t in a.targets if t in self.adaptations]
            if done:
                found[a.keys[0]] = ", ".join(done)
        return found

    def summary(self) -> str:
        """One line: tensors loaded, missing (always 0), and every other treatment by its rule."""
        parts = [f"{len(self.loaded_keys)} tensors loaded", "0 missing"]
        parts += [f"{n} ignored ({why})" for why, n in Counter(self.ignored.values()).items()]
        parts += [f"{n} the same as {key}" for key, n in Counter(self.tied.values()).items()]
        counts = Counter(self.changes.values())
        parts += [f"{k}: {text}" for k, text in self.changes.items() if counts[text] <= _MAX_LISTED]
        parts += [f"{n} keys: {text}" for text, n in counts.items() if n > _MAX_LISTED]
        parts += [
            f"{target.split('/', 1)[1]}: {value.name}"
            for a, value in self.initial
            for target in a.targets
        ]
        return ", ".join(parts)

    def report(self, files: Sequence[str] = ()) -> dict[str, Any]:
        """The same in full, JSON-ready, for a saved model's metadata.

        Args:
          files: names of the files by their numbers; with several, "sources" says what is from
            where.
        """
        prefix = self.prefix
        ignored = defaultdict(list)
        for key, why in self.ignored.items():
            ignored[why].append(self.names[key])
        report: dict[str, Any] = {
            "tensors_loaded": len(self.loaded_keys),
            "parameters": len(self.targets),
            "prefix": prefix,
            "transforms": dict(Counter(a.transform.name for a in self.loaded)),
            "ignored": dict(ignored),
            "tied": {self.names[key]: self.names[to] for key, to in self.tied.items()},
            "adapted": {self.names[key]: text for key, text in self.changes.items()},
            "initial_values": {t: value.name for a, value in self.initial for t in a.targets},
        }
        loaded = self.loaded_keys
        spelled = {k: self.names[k] for k in loaded if self.names[k] != prefix + k}
        if spelled:
            report["names"] = spelled
        if len(files) > 1:
            report["sources"] = {
                name: [key for key in loaded if self.sources[key][0] == number]
                for number, name in enumerate(files)
            }
        return report

    @property
    def prefix(self) -> str:
        """What precedes the canonical keys in the checkpoint."""
        prefixes = Counter(
            name.removesuffix(key)
            for a in self.loaded
            for key in a.keys
            if (name := self.names[key]).endswith(key)
        )
        return prefixes.most_common(1)[0][0] if prefixes else ""


def plan(
    found: Recognized,
    config: Any,
    *,
    target: Any = None,
    inflation: Inflation | None = None,
    new_head: bool = False,
    to_int8: bool = False,
) -> Plan:
    """Plans the conversion of a checkpoint; allocates nothing.

    Args:
      found: from `recognition.recognize`.
      config: of the model that the checkpoint holds.
      target: of the same model for other clips or classes, to which parameters are fitted.
      inflation: how a kernel is spread over more frames.
      new_head: leave a classifier's last layer in the checkpoint, if any, and start a new one.
      to_int8: whether the kernels of linear layers, but for those that are fitted, become int8
        values with scales (`nn.int8`).

    Raises:
      CheckpointMisfit: a key is missing, extra or misshapen; all of them are listed.
      ValueError: nothing fits a parameter to the target.
    """
    target = config if target is None else target
    architecture = architecture_of(config)
    table = found.family.table(architecture, config)
    found = _with_substitutes(table, found)
    names, shapes = found.names, found.shapes
    ignored: dict[str, str] = {}
    loaded: list[Assignment] = []
    initial: list[tuple[Assignment, InitialValue]] = []
    missing: dict[str, Pattern] = {}
    misshapen: dict[str, tuple[Pattern, Shape]] = {}
    for assignment in assignments(table, target_shapes(config)):
        if new_head and assignment.fresh is not None:
            initial.append((assignment, assignment.fresh))
            ignored |= {k: "head replaced by a new one" for k in assignment.keys if k in shapes}
            continue
        a = next((form for form in assignment.forms() if _is_there(form, shapes)), assignment)
        expected = dict(zip(a.keys, a.source_shapes, strict=True))
        absent = {k: s for k, s in expected.items() if k not in shapes}
        if a.initial is not None and len(absent) == len(expected):
            initial.append((a, a.initial))
            continue
        loaded.append(a)
        missing |= absent
        misshapen |= {
            k: (s, shapes[k])
            for k, s in expected.items()
            if k in shapes and not _matches(s, shapes[k])
        }
    used = {key for a in loaded for key in a.keys}
    tied: dict[str, str] = {}
    for key in shapes.keys() - used - ignored.keys():
        tie = next((t for t in table.tied if re.fullmatch(t.pattern, key)), None)
        rules = (*table.ignored, COUNTERS)
        reason = next((rule.reason for rule in rules if rule.matches(key)), None)
        if tie is not None and tie.key in used:
            tied[key] = tie.key
            if shapes[key] != shapes[tie.key]:
                misshapen[key] = (shapes[tie.key], shapes[key])
        elif reason is not None:
            ignored[key] = reason
    extra = {k: s for k, s in shapes.items() if k not in used and k not in tied | ignored}
    if missing or extra or misshapen:
        raise CheckpointMisfit(f"architecture {architecture!r}", missing, extra, misshapen)
    position = {key: i for i, key in enumerate(names)}
    targets = target_shapes(target)
    adaptations = _adaptations(loaded, found, config, target, inflation)
    if to_int8:
        loaded = _quantized(loaded, targets, target, adaptations)
    return Plan(
        architecture,
        target,
        targets,
        names,
        tuple(sorted(loaded, key=lambda a: position[a.keys[0]])),
        tuple((_reshaped(a, targets), value) for a, value in initial),
        {key: ignored[key] for key in names if key in ignored},
        {key: tied[key] for key in names if key in tied},
        adaptations,
        found.keys,
    )


def export_plan(
    config: Any,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
    stored: Collection[str] = (),
) -> Plan:
    """The plan of a checkpoint that holds exactly what a model has.

    Args:
      config: of the model.
      prefix: what precedes its canonical keys.
      names: keys for which this is not all.
      stored: paths of the model's parameters; kernels that have a scale beside them are int8.
    """
    architecture = architecture_of(config)
    targets = target_shapes(config)
    loaded = assignments(family_of(architecture).table(architecture, config), targets)
    if any(path.endswith(int8.SUFFIX) for path in stored):
        wide = [path for path in targets if path + int8.SUFFIX not in stored]
        loaded = tuple(_quantized(loaded, targets, config, wide))
    named = {key: (names or {}).get(key, prefix + key) for a in loaded for key in a.keys}
    return Plan(architecture, config, targets, named, loaded)


def target_shapes(config: Any) -> dict[str, Shape]:
    """Shape of every variable of a model by its path, e.g. "params/encoder/cls_token"."""
    return {path: tuple(nn.unbox(leaf).shape) for path, leaf in _boxed(config).items()}


@functools.lru_cache(maxsize=64)
def _boxed(config: Any) -> Mapping[str, Any]:
    """Every variable of a model with its logical axes."""
    # Tracing a model's initialisation takes a good part of a second.
    return traverse_util.flatten_dict(abstract_variables(build(config), boxed=True), sep="/")


def _quantized(
    loaded: Iterable[Assignment],
    targets: dict[str, Shape],
    config: Any,
    wide: Collection[str],
) -> list[Assignment]:
    """The same with linear kernels in int8, whose scales join the targets, but for the `wide`."""
    made = []
    for a in loaded:
        path = a.targets[0]
        kernel = _boxed(config)[path]
        if isinstance(kernel, int8.Kernel) and path not in wide:
            shapes = jax.eval_shape(int8.quantize_kernels, {path: kernel})
            scale = path + int8.SUFFIX
            targets[scale] = tuple(shapes[scale].value.shape)
            a = dataclasses.replace(
                a,
                targets=(path, scale),
                shapes=(*a.shapes, targets[scale][a.index is not None :]),
                transform=quantize(a.transform, kernel.input_dims),
            )
        made.append(a)
    return made


def _with_substitutes(table: Table, found: Recognized) -> Recognized:
    """The same, a tied tensor standing in for one that is not there."""
    shapes, keys = dict(found.shapes), dict(found.keys)
    for tie in table.tied:
        other = next((key for key in shapes if re.fullmatch(tie.pattern, key)), None)
        if tie.key not in shapes and other is not None:
            shapes[tie.key], keys[tie.key] = shapes.pop(other), keys.pop(other)
    return dataclasses.replace(found, shapes=shapes, keys=keys)


def _is_there(form: Assignment, shapes: Mapping[str, Shape]) -> bool:
    return all(
        key in shapes and len(shapes[key]) == len(expected)
        for key, expected in zip(form.keys, form.source_shapes, strict=True)
    )


def _matches(expected: Pattern, found: Shape) -> bool:
    return len(expected) == len(found) and all(
        e in (None, f) for e, f in zip(expected, found, strict=True)
    )


def _adaptations(
    loaded: Iterable[Assignment],
    found: Recognized,
    source: Any,
    target: Any,
    inflation: Inflation | None,
) -> dict[str, Adaptation]:
    changes: dict[str, Adaptation] = {}
    problems = []
    for a in loaded:
        if a.index is not None or source == target:
            continue
        for path, shape in zip(a.targets, a.shapes, strict=True):
            tensor = found.shapes.get(a.keys[0], shape)
            try:
                change = found.family.fit(path, shape, source, target, inflation, tensor)
            except ValueError as error:
                problems.append(f"{a.keys[0]}: {error}")
            else:
                if change is not None:
                    changes[path] = change
    if problems:
        raise ValueError("\n".join(problems))
    return changes


def _reshaped(a: Assignment, targets: Mapping[str, Shape]) -> Assignment:
    """An initial value has the shape of the model that is made, not of the checkpoint's."""
    if a.index is not None:
        return a
    return dataclasses.replace(a, shapes=tuple(targets[t] for t in a.targets))
