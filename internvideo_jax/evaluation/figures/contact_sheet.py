"""A picture of queries and of what was found for them."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.clips import open_clip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Height of pictures in pixels, and of a row in inches.
_HEIGHT, _ROW = 120, 1.15
_TEXT_WIDTH, _TEXT_LINES = 34, 5
_NAME_LENGTH = 24
_RIGHT, _WRONG = "tab:green", "0.75"


class Found(NamedTuple):
    """One of the results of a query.

    Attributes:
      name: of the clip.
      picture: uint8 `[H, W, 3]`; None where there is none.
      is_right: whether the query belongs to it; None where nobody knows.
      note: a line below the name.
    """

    name: str
    picture: np.ndarray | None
    is_right: bool | None = None
    note: str = ""


class Query(NamedTuple):
    """A text and the best clips for it, the best first.

    Attributes:
      text: it.
      rank: of the best clip that it belongs to; None where nobody knows.
      found: the results.
    """

    text: str
    rank: int | None
    found: Sequence[Found]


def contact_sheet(queries: Sequence[Query], title: str) -> "Figure":
    """Draws a row for each query: its text, and its results from left to right.

    Results that are right have a green frame.

    Args:
      queries: at least one, with any results.
      title: of the picture.
    """
    from matplotlib.figure import Figure

    columns = max(1, *(len(query.found) for query in queries))
    figure = Figure(figsize=(2.6 + 1.6 * columns, 0.4 + _ROW * len(queries)), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
    ratios = [1.6] + [1.0] * columns
    axes: Any = figure.subplots(len(queries), columns + 1, squeeze=False, width_ratios=ratios)
    for row, query in zip(axes, queries, strict=True):
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
        row[0].spines[:].set_visible(False)
        lines = textwrap.wrap(query.text, _TEXT_WIDTH, max_lines=_TEXT_LINES, placeholder=" …")
        if query.rank is not None:
            lines.append(f"rank {query.rank}")
        text = "\n".join(lines)
        row[0].text(0, 0.5, text, fontsize=8, va="center", parse_math=False)
        row[0].set_xlim(0, 1)
        for ax in row[1 + len(query.found) :]:
            ax.axis("off")
        for ax, found in zip(row[1:], query.found, strict=False):
            if found.picture is not None:
                ax.imshow(found.picture)
            color, width = (_RIGHT, 3) if found.is_right else (_WRONG, 1)
            ax.spines[:].set(color=color, linewidth=width)
            title = "\n".join(filter(None, [_cut(found.name), found.note]))
            ax.set_title(title, fontsize=6, pad=2, parse_math=False)
    return figure


def thumbnail(record: ClipRecord) -> np.ndarray | None:
    """The frame in the middle of a clip, 120 pixels high; None where it has none.

    uint8 `[120, W, 3]`.
    """
    if record.media == "audio":
        return None
    try:
        with open_clip(record) as reader:
            frame = reader.read([reader.num_frames // 2])[0]
    except (ValueError, OSError):
        return None
    height, width = frame.shape[:2]
    # Not wider than two squares.
    columns = min(max(round(width * _HEIGHT / height), 1), 2 * _HEIGHT)
    return cv2.resize(frame, (columns, _HEIGHT), interpolation=cv2.INTER_AREA)


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"
