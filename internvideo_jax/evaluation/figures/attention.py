"""A contact sheet of where the attention pooler looks."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class AttendedClip:
    """One row of the sheet.

    Attributes:
      title: name shown at the left.
      frames: uint8 `[T, H, W, 3]`.
      timestamps: seconds of the frames `[T]`.
      attention: attention `[t, h, w]` over patch tokens; t divides T (tubelets).
    """

    title: str
    frames: np.ndarray
    timestamps: np.ndarray
    attention: np.ndarray


def attention_figure(clips: Sequence[AttendedClip]) -> "Figure":
    """Draws each clip as a row of frames above a row of their attention, on one colour scale.

    The scale is attention times the number of patch tokens: 1 is what uniform attention would
    give. Each patch is one flat square, so the picture shows no more detail than there is.

    Raises:
      ValueError: no clips, or a clip whose attention does not cover its frames.
    """
    from matplotlib.figure import Figure

    if not clips:
        raise ValueError("expected at least one clip to draw, found none")
    for clip in clips:
        if len(clip.frames) % len(clip.attention):
            raise ValueError(
                f"expected a number of frames that the {len(clip.attention)} temporal steps of the"
                f" attention divide, found {len(clip.frames)} frames for {clip.title!r}; pass the"
                " frames that the model saw"
            )
    relative = [clip.attention * clip.attention.size for clip in clips]
    top = max(float(r.max()) for r in relative)
    columns = max(len(clip.frames) for clip in clips)
    figure = Figure(figsize=(1.4 * columns + 1.6, 2.95 * len(clips) + 0.4), layout="constrained")
    axes = figure.subplots(2 * len(clips), columns, squeeze=False)
    for ax in axes.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    for number, (clip, heat) in enumerate(zip(clips, relative, strict=True)):
        above, below = axes[2 * number : 2 * number + 2]
        tubelet = len(clip.frames) // len(heat)
        for i, frame in enumerate(clip.frames):
            above[i].imshow(frame)
            image = below[i].imshow(heat[i // tubelet], cmap="inferno", vmin=0, vmax=top)
            below[i].set_xlabel(f"{clip.timestamps[i]:.2f} s", fontsize=8)
        above[0].set_title(clip.title, fontsize=9, loc="left")
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("pooler attention, 1 = uniform", fontsize=8)
    return figure
