"""The pictures of the demo's report."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What the student does not see keeps this share of its brightness.
_DIMMED = 0.15

_TERMS = {
    "clip_middle": "image teacher's tokens",
    "clip_final": "image teacher's pooled feature",
    "mae": "video teacher's tokens",
    "audio_video/vtc": "contrast with clips",
    "audio_video/atc": "with sounds",
    "audio_video/avtc": "with both",
    "audio_video/vtm": "matching",
    "audio_video/mlm": "masked words",
}


def world_figure(clips: Sequence[tuple[str, np.ndarray]]) -> "Figure":
    """Rows of frames under their captions.

    Args:
      clips: caption and uint8 `[T, H, W, 3]` of each, with equally many frames.
    """
    from matplotlib.figure import Figure

    frames = len(clips[0][1])
    figure = Figure(figsize=(1.25 * frames, 1.55 * len(clips)))
    # A constrained layout would widen the first column to its captions.
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.96, wspace=0.05, hspace=0.25)
    for row, (caption, video) in zip(_rows(figure, len(clips), frames), clips, strict=True):
        for ax, frame in zip(row, video, strict=True):
            ax.imshow(frame)
        row[0].set_title(caption, fontsize=9, loc="left")
    return figure


def mask_figure(clips: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> "Figure":
    """For each clip its time steps, the image teacher's attention, and what the student sees.

    Args:
      clips: of each the frames uint8 `[t, H, W, 3]`, one per time step; the attention over patches
        `[t, h, w]`; whether the patches are kept, bool `[t, h, w]`.
    """
    from matplotlib.figure import Figure

    steps = len(clips[0][0])
    figure = Figure(figsize=(3 * (1.3 * steps + 0.3), 1.45 * len(clips) + 0.3))
    top = max(float(attention.max()) for _, attention, _ in clips)
    groups: Any = figure.subfigures(1, 3, wspace=0.02)
    grids = [_rows(group, len(clips), steps) for group in groups]
    titles = ("what is filmed", "where the image teacher looks", "what the student sees")
    for group, title in zip(groups, titles, strict=True):
        group.suptitle(title, fontsize=10)
        group.subplots_adjust(left=0.02, right=0.98, top=0.92, bottom=0.02, wspace=0.06)
    for number, (frames, attention, kept) in enumerate(clips):
        patch = [frames.shape[1 + axis] // kept.shape[1 + axis] for axis in range(2)]
        visible = np.kron(kept, np.ones((1, *patch)))[..., None].astype(bool)
        seen = np.where(visible, frames, _DIMMED * frames).astype(np.uint8)
        for step in range(steps):
            grids[0][number][step].imshow(frames[step])
            grids[1][number][step].imshow(attention[step], cmap="inferno", vmin=0, vmax=top)
            grids[2][number][step].imshow(seen[step])
    return figure


def loss_figure(
    runs: Sequence[tuple[str, Sequence[Mapping[str, Any]], Mapping[str, float]]],
) -> "Figure":
    """Losses of runs side by side, each with what a constant predictor reaches.

    Args:
      runs: of each the name, the lines of its metrics file, and the loss of a constant predictor by
        name of the metric to draw.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(runs), 4.2), layout="constrained")
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    for ax, (title, lines, constants) in zip(axes, runs, strict=True):
        for number, (name, constant) in enumerate(constants.items()):
            logged = [line for line in lines if line.get(name) is not None]
            color = f"C{number}"
            steps, values = ([line[key] for line in logged] for key in ("step", name))
            ax.plot(steps, values, color=color, label=_TERMS.get(name, name))
            ax.axhline(constant, color=color, linestyle="--", linewidth=1)
        ax.plot([], [], color="black", linestyle="--", linewidth=1, label="constant predictor")
        ax.set(title=title, xlabel="step", ylim=(0, None))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def _rows(figure: Any, rows: int, columns: int) -> "list[list[Axes]]":
    """Axes without ticks and frames."""
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    return [list(row) for row in axes]
