"""Files and folders that are whole or absent: made under another name, then renamed."""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# In an unfinished directory; held by the process that makes it, however that ends.
_LOCK = "lock"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Makes a file that appears under its name complete, or not at all.

    Yields a path beside `path` for the block to write to; when the block ends without an error it
    takes the place of `path`. Makes the folder.

    Raises:
      OSError: the file cannot be written; names `path`, not the temporary file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename not in (None, str(temporary), str(path), str(path.parent)):
            raise
        message = f"cannot write it ({error.strerror or error})"
        raise OSError(error.errno, message, str(path)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file so that it is whole or absent; errors as `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file so that it is whole or absent; errors as `atomic_file`.

    Raises:
      ValueError: a NaN or infinity, which JSON does not know.
      TypeError: a value that JSON cannot hold.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_directory(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Makes a directory that appears under its name complete, or not at all.

    Yields a path beside `target`, where nothing exists yet. What the block makes there becomes
    `target` when the block ends; if it raises, everything is removed, made parents included. What
    processes that were killed have left of the same target is removed, too.

    Raises:
      FileExistsError: before the block runs, if `target` exists and is not an empty directory.
    """
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists; choose another output or remove it first")
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    complete = scratch / target.name
    try:
        with open(scratch / _LOCK, "wb") as lock:
            # Where a file system has no locks, nothing is taken for abandoned.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield complete
        if target.exists():
            target.rmdir()
        complete.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:
            # Only empty ones go: after a success, none is.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _remove_abandoned(target: Path) -> None:
    for scratch in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        with contextlib.suppress(OSError), open(scratch / _LOCK, "rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch, ignore_errors=True)
