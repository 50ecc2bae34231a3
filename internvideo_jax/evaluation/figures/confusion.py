"""A picture of which classes are taken for which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More cells than this cannot be told apart on a page.
MAX_CLASSES = 100
_MAX_NUMBERED = 20
# Longer names would leave no room for the cells.
_MAX_NAME = 40
# Inches: of a cell, of the smallest picture without its names, of a letter of 8 points.
_CELL, _LEAST, _LETTER = 0.42, 2.4, 0.065


def confusion_figure(counts: np.ndarray, names: Sequence[str]) -> "Figure":
    """Draws confusion counts as shares of each row (true class), with counts in small ones.

    Args:
      counts: `[C, C]`, rows are true classes; see `evaluation.classification.confusion_counts`.
      names: of the classes; long ones are cut.

    Raises:
      ValueError: more than `MAX_CLASSES` classes, or another number of names.
    """
    from matplotlib.figure import Figure

    size = len(counts)
    if size > MAX_CLASSES or len(names) != size:
        raise ValueError(
            f"expected counts of at most {MAX_CLASSES} classes and as many names, found {size} and"
            f" {len(names)}"
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in names]
    side = 12.0
    if size <= _MAX_NUMBERED:
        side = 1.5 + max(_CELL * size, _LEAST) + _LETTER * max(map(len, names), default=0)
    # "constrained" does not foresee that the cells are squares, and cuts off labels.
    figure = Figure(figsize=(side + 0.8, side), layout="compressed")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # Names may hold what looks like a formula.
    style: dict[str, Any] = {"fontsize": 8 if size <= _MAX_NUMBERED else 5, "parse_math": False}
    axes.set_xticks(range(size), names, rotation=90, **style)
    axes.set_yticks(range(size), names, **style)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if size <= _MAX_NUMBERED:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, fraction=0.04, label="share of the true class's clips")
    return figure
