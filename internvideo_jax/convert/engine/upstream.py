"""Constructor options of the upstream classes, and the configs that mean the same here."""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from internvideo_jax.config import from_dict, to_dict
from internvideo_jax.convert.engine.family import all_families, family_of
from internvideo_jax.convert.engine.options import Options
from internvideo_jax.convert.engine.recognition import Recognized
from internvideo_jax.models import ARCHITECTURES


def config_from_upstream(
    kind: str, options: Mapping[str, Any], fallback: Mapping[str, Any] | None = None
) -> Any:
    """The config of the model that an upstream class makes of constructor options.

    Args:
      kind: which class, one of the families' kinds.
      options: its constructor's arguments by name ("embed_dim", "clip_return_layer", ...).
      fallback: more of them, of less authority; here any other names are passed over.

    Raises:
      ValueError: an unknown kind or option, a missing one, or a value that is not supported.
    """
    kinds = {name: family for family in all_families() for name in family.kinds}
    if kind not in kinds:
        raise ValueError(f"expected a kind among {', '.join(kinds)}, found {kind!r}")
    reader = Options(kind, options, fallback)
    config = kinds[kind].kinds[kind](reader)
    reader.finish(kinds[kind].neutral)
    # Options come from files, too: the round trip checks their types.
    return from_dict(type(config), to_dict(config), f"options of kind {kind!r}")


class Inferred(NamedTuple):
    """A config, and lines about where tensors, the file's arguments and released models differ."""

    config: Any
    notes: tuple[str, ...]


def infer_config(
    found: Recognized,
    given: Mapping[str, Any] | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Any:
    """The config that `infer` finds."""
    return infer(found, given, stored).config


def infer(
    found: Recognized,
    given: Mapping[str, Any] | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Inferred:
    """The config of the model that a checkpoint holds, or that is asked of it.

    Args:
      found: from `recognition.recognize`.
      given: constructor options that the user states; they win over what the tensors say.
      stored: arguments found in the file; they fill only what the tensors do not say, and are
        overruled by what they say. None counts as not stored.

    Raises:
      ValueError: an option that must be given, is unknown or not supported.
    """
    given = dict(given or {})
    stored = {name: value for name, value in (stored or {}).items() if value is not None}
    stored = found.family.recorded(stored)
    _refuse_empty(found)
    try:
        shown, assumed = found.family.infer(found.kind, found.shapes, given, stored)
    except KeyError as error:
        raise ValueError(
            f"expected a tensor {error} in a checkpoint of {found.family.name}, found none, without"
            " which its model is not known; check that this is the right file"
        ) from None
    config = config_from_upstream(found.kind, shown | given, assumed | stored)
    return Inferred(config, tuple(_notes(shown, given, assumed, stored)))


def _refuse_empty(found: Recognized) -> None:
    """What DeepSpeed's ZeRO stage 3 leaves of a model: names, and nothing behind them."""
    empty = [key for key, shape in found.shapes.items() if 0 in shape]
    if 2 * len(empty) > len(found.shapes):
        raise ValueError(
            f"expected parameters, found {len(empty)} of {len(found.shapes)} tensors empty:"
            " DeepSpeed's ZeRO stage 3 has sharded them away into the files of its processes;"
            " gather them with the zero_to_fp32.py that it puts beside its checkpoints"
        )


def _notes(
    shown: dict[str, Any],
    given: dict[str, Any],
    assumed: Mapping[str, Any],
    stored: Mapping[str, Any],
) -> Iterator[str]:
    def differing(known: Mapping[str, Any]) -> list[str]:
        return [n for n in known if n in stored and _differ(known[n], stored[n])]

    said = {n: v for n, v in (shown | given).items() if n in differing(shown | given)}
    if said:
        yield "recorded in the file but not taken: " + ", ".join(
            f"{name}={stored[name]!r} ({'given' if name in given else 'tensors show'} {value})"
            for name, value in said.items()
        )
    left = {n: v for n, v in assumed.items() if v is not None and n not in (shown | given)}
    heads = {name for name in left if "head" in name}
    if unusual := [name for name in differing(left) if name in heads]:
        yield "as recorded in the file: " + ", ".join(
            f"{name}={stored[name]!r} (released models of this width: {left[name]})"
            for name in unusual
        )
    # Numbers of heads follow from the width of a released model.
    if unsaid := {n: v for n, v in left.items() if n not in stored and n not in heads}:
        yield "not in the file, assumed as usual: " + ", ".join(
            f"{name}={value}" for name, value in unsaid.items()
        )


def _differ(found: Any, stored: Any) -> bool:
    numbers = int, float, Fraction
    if isinstance(found, numbers) and isinstance(stored, numbers):
        # A fraction is what a constructor has rounded a ratio to.
        return not math.isclose(found, stored, rel_tol=0.02 if type(found) is Fraction else 1e-6)
    scalars = *numbers, str
    return isinstance(found, scalars) and isinstance(stored, scalars) and found != stored


def to_upstream(config: Any) -> dict[str, Any]:
    """Constructor options, JSON-ready, of what the tensors of a model do not show.

    Stored in a file, they make `infer_config` read the same config from it.
    """
    return family_of(architecture_of(config)).to_options(config)


def architecture_of(config: Any) -> str:
    """Name in `models.ARCHITECTURES` of the architecture that a config belongs to."""
    return next(n for n, a in ARCHITECTURES.items() if type(config) is a.config_cls)
