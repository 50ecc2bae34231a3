"""Result cards: what a result was measured with, so that it can be measured again."""

import hashlib
import importlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from internvideo_jax import __version__

# What decides about decoded pixels and about arithmetic.
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "av", "cv2", "PIL")


def environment(dtype: str) -> dict[str, Any]:
    """Versions, device and dtype of this process."""
    device = jax.devices()[0]
    versions = {name: importlib.import_module(name).__version__ for name in PACKAGES}
    return {
        "dtype": dtype,
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": {
            "internvideo_jax": __version__,
            "python": platform.python_version(),
            **versions,
        },
    }


def directory_files(directory: Path) -> list[Path]:
    """All files below a directory, sorted by their relative paths."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def combined_sha256(sums: Mapping[Path, str], directory: Path) -> str:
    """One sum of all files of a directory, from the sums of each, that moving it does not change.

    It is the sum of the lines that `sha256sum` prints for the files by their sorted relative paths.
    """
    lines = sorted(
        (path.relative_to(directory).as_posix(), digest) for path, digest in sums.items()
    )
    return hashlib.sha256("".join(f"{d}  {name}\n" for name, d in lines).encode()).hexdigest()
