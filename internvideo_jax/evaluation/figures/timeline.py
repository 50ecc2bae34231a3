"""A picture of what a classifier sees over the time of a long video."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Classes in a picture; rarer ones are left out.
MAX_CLASSES = 12
# Of fewer than these, more are shown for comparison.
_MIN_CLASSES = 4
# Longer names would leave no room for the time.
_MAX_NAME = 40
# Inches.
_WIDTH, _ROW, _REST = 11.0, 0.34, 1.25
_BEST, _UNREADABLE = "tab:orange", "0.8"
# Seconds between two ticks of the time, of which there are at most so many.
_TICKS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
_MAX_TICKS = 14


def timeline_figure(
    times: np.ndarray, probabilities: np.ndarray, names: Sequence[str], title: str
) -> "Figure":
    """Draws the probabilities of classes over time, and which is the best at each moment.

    Args:
      times: starts and ends of the windows in seconds, `[W, 2]`, W at least 1, ascending.
      probabilities: `[W, C]`; NaN of windows that cannot be read.
      names: of the C classes; long ones are cut.
      title: of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    shown, num_leading = chosen_classes(times, probabilities)
    edges = _edges(times)
    figure = Figure(figsize=(_WIDTH, _REST + _ROW * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor(_UNREADABLE)
    rows = np.ma.masked_invalid(probabilities[:, shown].T)
    image = axes.pcolormesh(
        edges, np.arange(len(shown) + 1), rows, cmap="Blues", vmin=0, vmax=1, rasterized=True
    )
    axes.hlines(range(1, len(shown)), edges[0], edges[-1], color="white", linewidth=1)
    best = _best(probabilities)
    for row, number in enumerate(shown):
        windows = np.flatnonzero(best == number)
        middle = np.full(len(windows), row + 0.5)
        axes.hlines(middle, edges[windows], edges[windows + 1], color=_BEST, linewidth=4)
    marks = [Patch(color=_BEST, label="best class")]
    if (best < 0).any():
        marks.append(Patch(color=_UNREADABLE, label="unreadable"))
    axes.legend(
        handles=marks, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderpad=0
    )
    labels = [_cut(names[i]) for i in shown]
    # Names may hold what looks like a formula.
    axes.set_yticks(np.arange(len(shown)) + 0.5, labels, fontsize=9, parse_math=False)
    axes.tick_params(axis="y", length=0)
    if num_leading > len(shown):
        title += f" ({len(shown)} of the {num_leading} classes that lead)"
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(len(shown), 0), xlabel="time")
    axes.xaxis.set_major_locator(MultipleLocator(_tick(edges[-1] - edges[0])))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: format_time(seconds)))
    figure.colorbar(image, ax=axes, label="probability", pad=0.01)
    return figure


def chosen_classes(times: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, int]:
    """The classes to show: those that lead for the longest time, and the most probable others where
    these are few.

    Args:
      times: as in `timeline_figure`.
      probabilities: likewise.

    Returns:
      Their numbers, int64 `[R]`, in the order in which they first lead, and how many lead at all.
    """
    best = _best(probabilities)
    seconds = np.diff(_edges(times))
    num_classes = probabilities.shape[1]
    lead = np.bincount(best[best >= 0], seconds[best >= 0], minlength=num_classes)
    peak = np.nan_to_num(probabilities).max(axis=0)
    order = np.lexsort((-peak, -lead))
    num_leading = int((lead > 0).sum())
    count = min(max(num_leading, _MIN_CLASSES), MAX_CLASSES, num_classes)
    chosen = order[:count]
    first = [np.append(np.flatnonzero(best == number), len(best))[0] for number in chosen]
    return chosen[np.argsort(first, kind="stable")], num_leading


def format_time(seconds: float, *, with_tenths: bool = False) -> str:
    """Seconds as "m:ss" or "h:mm:ss", with tenths where they have some, or always."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 or with_tenths else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{text}" if minutes >= 60 else f"{minutes}:{text}"


def _tick(seconds: float) -> float:
    """Seconds between ticks over so many."""
    wanted = seconds / _MAX_TICKS
    return next((tick for tick in _TICKS if tick >= wanted), 3600 * math.ceil(wanted / 3600))


def _cut(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def _best(probabilities: np.ndarray) -> np.ndarray:
    """The best class of each window, int64 `[W]`; -1 where there is none."""
    known = ~np.isnan(probabilities).any(axis=1)
    return np.where(known, np.nan_to_num(probabilities).argmax(axis=1), -1)


def _edges(times: np.ndarray) -> np.ndarray:
    """Where one window gives way to the next, float64 `[W + 1]`: half-way between their middles."""
    middles = times.mean(axis=1)
    between = (middles[:-1] + middles[1:]) / 2
    return np.concatenate([times[:1, 0], between, times[-1:, 1]])
