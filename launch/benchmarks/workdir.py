"""Room for large files that a benchmark makes."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from internvideo_jax.launch.arguments import UsageError


@contextlib.contextmanager
def working_folder(workdir: Path, needed: float) -> Iterator[Path]:
    """A folder in `workdir` that is removed at the end, come what may.

    Args:
      workdir: made if need be.
      needed: bytes that must be free.

    Raises:
      UsageError: too little room.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=workdir) as folder:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UsageError(
                f"expected {needed / 1e9:.1f} GB of free disk in {workdir}, found"
                f" {free / 1e9:.1f} GB; name a folder on a larger one with --workdir"
            )
        yield Path(folder)
