"""How far a command has got: a bar on a terminal, elsewhere a line every few seconds."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from internvideo_jax.environment import printable

T = TypeVar("T")

# Seconds between two lines.
INTERVAL = 5.0


class Progress(contextlib.AbstractContextManager["Progress"]):
    """Progress on the standard error, to be used in a `with` block.

    Args:
      total: how much there is; None if nobody knows.
      unit: what is counted, in the singular: "clip"; "B" are bytes.
      title: what is done, if that is not plain.
    """

    def __init__(self, total: int | None, unit: str, title: str | None = None):
        is_bytes = unit == "B"
        self._bar = tqdm(
            total=total,
            unit=unit,
            desc=title,
            unit_scale=is_bytes,
            disable=None,
            leave=not is_bytes,
        )
        self._total, self._unit, self._title = total, unit, title
        self._done = 0
        self._notes = ""
        self._started = self._shown = time.monotonic()
        # When the first line was shown, and what was done by then.
        self._first: tuple[float, int] | None = None

    def update(self, count: int = 1) -> None:
        """Counts what has been done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._shown >= INTERVAL:
            self._shown = now
            print(self._line(now), file=sys.stderr, flush=True)

    def counting(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each of which counts when it comes."""
        for item in items:
            self.update()
            yield item

    def set_postfix(self, **values: Any) -> None:
        """Shows values beside the count from now on."""
        self._bar.set_postfix(**values)
        self._notes = "".join(f", {name} {value}" for name, value in values.items())

    def write(self, text: str, file: TextIO | None = None) -> None:
        """Prints a line that the bar does not overwrite, by default to the standard error."""
        self._bar.write(printable(text), file=file or sys.stderr)

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _line(self, now: float) -> str:
        title = f"{self._title}: " if self._title else ""
        counted = self._counted(self._done)
        if self._total:
            counted = f"{counted} of {self._counted(self._total)}"
        unit = "" if self._unit == "B" else f" {self._unit}s"
        spent = tqdm.format_interval(now - self._started)
        return f"{title}{counted}{unit}{self._notes} in {spent}{self._left(now)}"

    def _left(self, now: float) -> str:
        """The remaining time at the rate since the first line, before which things start up."""
        if self._first is None:
            self._first = now, self._done
        since, done_by_then = self._first
        if not self._total or not done_by_then < self._done < self._total:
            return ""
        rate = (self._done - done_by_then) / (now - since)
        return f", {tqdm.format_interval((self._total - self._done) / rate)} left"

    def _counted(self, number: int) -> str:
        return f"{tqdm.format_sizeof(number)}B" if self._unit == "B" else f"{number:,}"
