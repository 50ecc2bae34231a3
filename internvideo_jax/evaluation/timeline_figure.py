"""A picture of what a classifier sees over the time of a long video."""

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
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shown = chosen_classes(times, probabilities)
    edges = _edges(times)
    figure = Figure(figsize=(_WIDTH, _REST + _ROW * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    rows = np.ma.masked_invalid(probabilities[:, shown].T)
    image = axes.pcolormesh(
        edges, np.arange(len(shown) + 1), rows, cmap="Blues", vmin=0, vmax=1, rasterized=True
    )
    best = _best(probabilities)
    for row, number in enumerate(shown):
        windows = np.flatnonzero(best == number)
        axes.hlines(
            np.full(len(windows), row + 0.5),
            edges[windows],
            edges[windows + 1],
            color="tab:orange",
            linewidth=4,
            label="best class" if row == 0 else None,
        )
    cut = [
        names[i] if len(names[i]) <= _MAX_NAME else f"{names[i][: _MAX_NAME - 1]}…" for i in shown
    ]
    axes.set_yticks(np.arange(len(shown)) + 0.5, cut, fontsize=9)
    axes.hlines(range(1, len(shown)), edges[0], edges[-1], color="white", linewidth=1)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(len(shown), 0), xlabel="time", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 1.5, 2, 3, 5, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: format_time(seconds)))
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderpad=0)
    figure.colorbar(image, ax=axes, label="probability", pad=0.01)
    return figure


def chosen_classes(times: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Numbers of the classes to show, int64 `[R]`, in the order of the time when they lead.

    Those that lead for the longest time, and where there are few, the most probable others.
    """
    best = _best(probabilities)
    seconds = np.diff(_edges(times))
    num_classes = probabilities.shape[1]
    lead = np.bincount(best[best >= 0], seconds[best >= 0], minlength=num_classes)
    peak = np.nan_to_num(probabilities).max(axis=0)
    order = np.lexsort((-peak, -lead))
    count = min(max(int((lead > 0).sum()), _MIN_CLASSES), MAX_CLASSES, num_classes)
    chosen = order[:count]
    first = [np.append(np.flatnonzero(best == number), len(best))[0] for number in chosen]
    return chosen[np.argsort(first, kind="stable")]


def format_time(seconds: float) -> str:
    """Seconds as "m:ss" or "h:mm:ss", with as many tenths as they have."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{text}" if minutes >= 60 else f"{minutes}:{text}"


def _best(probabilities: np.ndarray) -> np.ndarray:
    """The best class of each window, int64 `[W]`; -1 where there is none."""
    known = ~np.isnan(probabilities).any(axis=1)
    return np.where(known, np.nan_to_num(probabilities).argmax(axis=1), -1)


def _edges(times: np.ndarray) -> np.ndarray:
    """Where one window gives way to the next, float64 `[W + 1]`: half-way between their middles."""
    middles = times.mean(axis=1)
    between = (middles[:-1] + middles[1:]) / 2
    return np.concatenate([times[:1, 0], between, times[-1:, 1]])
