"""Measured numbers, some of which must not be too large or too small."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from internvideo_jax.launch.benchmarks.runner import Details, markdown_table


class Figure(NamedTuple):
    """One number.

    Attributes:
      name: what it is of.
      value: it.
      unit: in which it is shown; "" without.
      at_most: what it must not exceed; None without a bound.
      at_least: what it must reach; None without a bound.
    """

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it keeps to its bounds; NaN keeps to none."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def __str__(self) -> str:
        bounds = (("at most", self.at_most), ("at least", self.at_least))
        known = [f"{name} {_number(bound)}" for name, bound in bounds if bound is not None]
        shown = f"{_number(self.value)} {self.unit}".rstrip()
        return f"{shown} ({', '.join(known)})" if known else shown


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured of one part of the library.

    Attributes:
      name: of the part.
      figures: numbers, with different names.
      details: facts about them, JSON-ready.
    """

    name: str
    figures: Sequence[Figure]
    details: Details = dataclasses.field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether all of them keep to their bounds."""
        return all(figure.holds for figure in self.figures)

    def to_json(self) -> dict[str, Any]:
        """The numbers by name, with their units and bounds; null for what is not finite."""
        figures: dict[str, Any] = {}
        for figure in self.figures:
            stated = {key: x for key, x in figure._asdict().items() if x not in (None, "")}
            if not math.isfinite(figure.value):
                stated["value"] = None
            figures[stated.pop("name")] = stated
        return {"name": self.name, "figures": figures, "holds": self.holds} | self.details

    def table(self) -> str:
        """The numbers as a Markdown table."""
        shown = [(figure.name, str(figure)) for figure in self.figures]
        return markdown_table([("name", self.name), *shown])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
