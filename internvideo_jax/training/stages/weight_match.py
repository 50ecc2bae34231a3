"""Which parameters of a saved model fit a model of other clips, other classes or another kind."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from internvideo_jax.convert.engine.adaptations import Adaptation
from internvideo_jax.convert.engine.family import family_of
from internvideo_jax.convert.engine.upstream import architecture_of
from internvideo_jax.models.stage2 import Stage2Config
from internvideo_jax.nn.lora import LoRAConfig
from internvideo_jax.nn.stack import StackConfig

# What a model may choose for itself: sizes that weights are adapted to, and how it computes. That
# two encoders agree on having layer scales and a learned table shows in their parameters.
_FREE_FIELDS = {
    "num_frames",
    "image_size",
    "tubelet_size",
    "learned_position",
    "as_released",
    "layer_scale_init",
    "drop_path_rate",
    "image_positions",
    "dropout_rate",
    "attention_dropout_rate",
    "max_length",
    "mlm_head",
    "remat",
    "dtype",
}
# What precedes the paths of an encoder, also of one that is no part of a model.
ENCODER = "params/encoder/"
_HEAD = "params/head/"
# Nothing reads it where images have other positions, which models may choose.
_OF_IMAGES = "/img_pos_embed"


class WeightMatch(NamedTuple):
    """Which parameters of a model come from where.

    Attributes:
      taken: those of the saved model.
      adapted: what is done to some of these.
      fresh: those that keep the values that they start with.
      num_left: parameters of the saved model without a use.
    """

    taken: list[str]
    adapted: dict[str, Adaptation]
    fresh: list[str]
    num_left: int


def match_weights(
    path: str,
    shapes: Mapping[str, Any],
    saved: Any,
    config: Any,
    targets: Mapping[str, Any],
    may_start_afresh: Callable[[str], bool],
    new_head: bool,
) -> WeightMatch:
    """Matches the shapes of a saved model's parameters with those that are wanted.

    Args:
      path: the saved model, for errors.
      shapes: of its parameters, by path.
      saved: its config.
      config: of the model that the parameters are for.
      targets: shapes of that one's parameters, by path.
      may_start_afresh: by path, whether a parameter may be missing in the saved model.
      new_head: leave the saved classifier's last layer out.

    Raises:
      ValueError: it does not fit; all misfits are listed.
    """
    left = {n: x.shape for n, x in shapes.items() if not (new_head and n.startswith(_HEAD))}
    problems = _contradictions(saved, config)
    match = WeightMatch([], {}, [], len(left) - len(left.keys() & targets.keys()))
    for key, target in targets.items():
        if key in left:
            shape = left.pop(key)
            match.taken.append(key)
            try:
                change = _fit(key, shape, target.shape, saved, config)
            except ValueError as error:
                problems.append(f"{key}: {error}")
            else:
                match.adapted.update({key: change} if change else {})
        elif may_start_afresh(key):
            match.fresh.append(key)
        else:
            problems.append(f"{key}: missing, expected shape {target.shape}")
    is_same_kind = type(saved) is type(config)
    problems += [
        f"{key}: not part of the model, found shape {shape}"
        for key, shape in left.items()
        if (is_same_kind or key.startswith(ENCODER)) and not key.endswith(_OF_IMAGES)
    ]
    if problems:
        raise ValueError(
            f"the saved model {path} does not fit: {len(problems)} misfits\n  "
            + "\n  ".join(problems)
            + "\ncheck that this is the right model, and the stage's config"
        )
    return match


def _towers(config: Any) -> dict[str, StackConfig]:
    """The configs of a model's stacks by their places in its own."""
    if isinstance(config, StackConfig):
        return {"encoder": config}
    towers: dict[str, StackConfig] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, StackConfig):
            towers[field.name] = value
        elif dataclasses.is_dataclass(value):
            towers |= {f"{field.name}.{name}": x for name, x in _towers(value).items()}
    return towers


def _contradictions(source: Any, target: Any) -> list[str]:
    """Fields in which towers differ although no adaptation makes up for it."""
    found, problems = _towers(source), []
    for name, tower in _towers(target).items():
        other = found.get(name)
        if other is None and isinstance(source, Stage2Config):
            # Its parameters start afresh, or are missing.
            continue
        if other is None or type(other) is not type(tower):
            kind = type(source if other is None else other).__name__
            problems.append(f"config: expected {type(tower).__name__}, found {kind}")
            continue
        problems += [
            f"config.{name}.{field.name}: expected {wanted!r}, found {got!r}"
            for field in dataclasses.fields(tower)
            if field.name not in _FREE_FIELDS
            and not _agree(wanted := getattr(tower, field.name), got := getattr(other, field.name))
        ]
    return problems


def _agree(wanted: Any, found: Any) -> bool:
    """Whether fields of two towers say the same of their weights.

    Adapters that one of them lacks show in the parameters.
    """
    adapters = [x for x in (wanted, found) if isinstance(x, LoRAConfig)]
    if adapters and None in (wanted, found):
        return True
    if len(adapters) == 2:
        wanted, found = (dataclasses.replace(x, dropout_rate=0.0) for x in adapters)
    return bool(wanted == found)


def _fit(
    name: str, shape: tuple[int, ...], wanted: tuple[int, ...], source: Any, target: Any
) -> Adaptation | None:
    """The change that makes a saved parameter fit, None if it fits as it is.

    Raises:
      ValueError: nothing makes it fit.
    """
    family = family_of(architecture_of(target))
    change = family.fit(name, shape, source, target, None, shape)
    if (change.shape if change else shape) != wanted:
        raise ValueError(f"expected shape {wanted}, found {shape}")
    return change
