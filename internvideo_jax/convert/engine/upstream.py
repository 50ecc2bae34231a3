"""Constructor options of the upstream classes, and the configs that mean the same here."""

from collections.abc import Mapping
from typing import Any

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


def infer_config(
    found: Recognized,
    given: Mapping[str, Any] | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Any:
    """The config of the model that a checkpoint holds, or that is asked of it.

    Args:
      found: from `recognition.recognize`.
      given: constructor options that the user states; they win over what the tensors say.
      stored: arguments found in the file; they fill only what the tensors do not say.

    Raises:
      ValueError: an option that must be given, is unknown or not supported.
    """
    given, stored = dict(given or {}), dict(stored or {})
    try:
        shown, assumed = found.family.infer(found.kind, found.shapes, given, stored)
    except KeyError as error:
        raise ValueError(
            f"expected a tensor {error} in a checkpoint of {found.family.name}, found none, without"
            " which its model is not known; check that this is the right file"
        ) from None
    return config_from_upstream(found.kind, shown | given, assumed | stored)


def to_upstream(config: Any) -> dict[str, Any]:
    """Constructor options, JSON-ready, of what the tensors of a model do not show.

    Stored in a file, they make `infer_config` read the same config from it.
    """
    return family_of(architecture_of(config)).to_options(config)


def architecture_of(config: Any) -> str:
    """Name in `models.ARCHITECTURES` of the architecture that a config belongs to."""
    return next(n for n, a in ARCHITECTURES.items() if type(config) is a.config_cls)
