"""Sizes of the kernels' blocks, by generation of the TPU, pass and class of shape.

Those of a prototype, but for the heads and chunks that docs/kernels.md tells of; `internvideo-jax
benchmark attention --tune` searches for better ones.
"""

from typing import NamedTuple

import jax


class Sizes(NamedTuple):
    """How a call is cut.

    Attributes:
      heads: at most so many heads in one step of the grid.
      tile: queries that are computed together, a multiple of 128.
      chunk: keys whose scores are made at once, a multiple of 128.
      split_keys: whether keys carry the exponent into the scores of the forward pass, which then
        need no factor each. A key is two numbers of bfloat16 then, as one would be too coarse:
        free where the matrix unit makes sums of 256 and a head has 128 channels. Up to 640 queries
        are too few to be worth it, and spare rows make it dearer.
    """

    heads: int
    tile: int
    chunk: int
    split_keys: bool = False


# Up to so many tokens several heads share a step, so that work of one hides the start of the next.
SHORT = 640

# (generation, pass, class) -> sizes. Classes: see `shape_class`.
TABLE: dict[tuple[str, str, str], Sizes] = {
    ("v5e", "forward", "short"): Sizes(4, 512, 512),
    ("v5e", "forward", "frame"): Sizes(8, 512, 512),
    ("v5e", "forward", "narrow"): Sizes(2, 512, 256),
    ("v5e", "forward", "wide"): Sizes(1, 512, 256),
    ("v5e", "backward", "short"): Sizes(4, 512, 256),
    ("v5e", "backward", "frame"): Sizes(4, 512, 256),
    ("v5e", "backward", "narrow"): Sizes(2, 512, 256),
    ("v5e", "backward", "wide"): Sizes(1, 512, 512),
    ("v6e", "forward", "short"): Sizes(4, 512, 512),
    ("v6e", "forward", "frame"): Sizes(8, 512, 256),
    ("v6e", "forward", "narrow"): Sizes(2, 512, 256),
    ("v6e", "forward", "wide"): Sizes(2, 512, 1024, split_keys=True),
    ("v6e", "backward", "short"): Sizes(4, 512, 256),
    ("v6e", "backward", "frame"): Sizes(4, 512, 256),
    ("v6e", "backward", "narrow"): Sizes(2, 512, 256),
    ("v6e", "backward", "wide"): Sizes(1, 512, 512),
}
FALLBACK = {"forward": Sizes(1, 512, 256), "backward": Sizes(1, 512, 256)}

# Kinds of devices as JAX names them.
_GENERATIONS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}

# Vector memory that a kernel may ask for. Newer generations have 64 or 128 MiB, of which a model
# needs a part for itself: with a limit near the whole, models do not compile.
_BUDGET = 48 * 2**20
_OLD_BUDGET = 14 * 2**20


def generation() -> str:
    """The generation of TPU that code traced now is for; "" for others and for no TPU.

    That of the current mesh, else of the default device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = None if device is None else device.device_kind
    return _GENERATIONS.get(kind or jax.devices()[0].device_kind, "")


def shape_class(tokens: int, head_dim: int) -> str:
    """ "short", or "frame" with a class token; of longer ones "narrow" or "wide" by the head.

    Args:
      tokens: the larger of the numbers of queries and keys.
      head_dim: D.
    """
    if tokens <= SHORT:
        return "frame" if tokens % 128 == 1 else "short"
    return "narrow" if head_dim <= 96 else "wide"


def sizes_for(name: str, tokens: int, head_dim: int, chip: str | None = None) -> Sizes:
    """The table's sizes for a generation, or safe ones.

    Args:
      name: of the pass, "forward" or "backward".
      tokens: the larger of the numbers of queries and keys.
      head_dim: D.
      chip: the generation; that of code traced now by default.
    """
    entry = (generation() if chip is None else chip, name, shape_class(tokens, head_dim))
    return TABLE.get(entry, FALLBACK[name])


def has_one_core(chip: str) -> bool:
    """Whether steps of a grid run in order; other generations share them between two cores."""
    return chip in ("v5e", "v6e")


def vmem_budget(platform: str) -> int:
    """Bytes of vector memory that a kernel may ask for."""
    return _OLD_BUDGET if platform == "tpu" and not generation() else _BUDGET
