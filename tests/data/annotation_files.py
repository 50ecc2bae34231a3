"""Annotation files that tests write, and what is wrong with them."""

from pathlib import Path

import pytest

from internvideo_jax.data.annotations.lists import read_annotations
from internvideo_jax.data.annotations.records import AnnotationError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path, **arguments: object) -> list[tuple[int | None, str]]:
    """Lines and messages of what is wrong with a file."""
    with pytest.raises(AnnotationError) as info:
        read_annotations(path, **{"root": "/data", **arguments})
    assert str(path) in str(info.value)
    return [(problem.line, str(problem)) for problem in info.value.problems]
