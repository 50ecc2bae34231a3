"""Pictures with names of classes in any script, on disk."""

import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from internvideo_jax.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Kinds of pictures, by the ends of their names.
PICTURES = (".png", ".pdf", ".svg", ".jpg")

_MISSING_GLYPH = re.compile(r"Glyph \d+ .* missing from font")


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a picture, whole or not at all; says so where the font lacks characters of names.

    Args:
      figure: of matplotlib.
      path: the file, whose name ends in one of `PICTURES`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with atomic_file(path) as temporary:
            figure.savefig(temporary, dpi=120, format=path.suffix[1:].lower())
    # Matplotlib warns of every character.
    others = [w for w in caught if not _MISSING_GLYPH.match(str(w.message))]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if len(others) < len(caught):
        print(
            f"{path.name}: the font lacks characters of some names; they show as boxes",
            file=sys.stderr,
        )
