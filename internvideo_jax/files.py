"""Small files of any origin read within limits; files and folders that are whole or absent: made
under another name, then renamed."""

import contextlib
import errno
import fcntl
import glob
import itertools
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

# In an unfinished directory; held by the process that makes it, however that ends.
_LOCK = "lock"

# What the system says of a disk, or a user's share of it, that is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)

# Far above every description that we write.
_JSON_BYTES = 64 * 2**20
_JSON_DEPTH = 64


class DiskFullError(OSError):
    """A disk with too little room: which path needs it, how much, what is free, and what to do."""

    def __init__(self, path: str | os.PathLike[str], nbytes: int | None = None) -> None:
        text = f"{no_space(path, nbytes)}: make room or name another output"
        super().__init__(errno.ENOSPC, text, os.fspath(path))


def check_regular(path: str | os.PathLike[str]) -> None:
    """Looks at a file before it is opened: a pipe or device may never end.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is a folder, pipe, device or socket.
    """
    if "://" in os.fspath(path):
        return
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
        kind = next((name for is_kind, name in kinds.items() if is_kind(mode)), "device")
        raise ValueError(f"{path}: expected a regular file, found a {kind}")


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Reads a whole file of any origin; `gs://` paths work too.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: no regular file, or larger than `max_bytes`; names it.
    """
    check_regular(path)
    with _open(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path}: expected at most {max_bytes:,} bytes, found more")
    return content


def read_json(path: str | os.PathLike[str], max_bytes: int = _JSON_BYTES) -> Any:
    """Reads a JSON file of any origin; errors as of `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, max_bytes), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """Parses JSON of any origin; no value nests deeper than code that walks it can.

    Args:
      text: UTF-8 if bytes.
      where: what to call it in errors.

    Raises:
      ValueError: not valid JSON, NaN or an infinity, or nested more than 64 levels deep.
    """
    too_deep = f"{where}: expected JSON of at most {_JSON_DEPTH} levels, found deeper"
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(too_deep) from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    level = [value]
    for _ in range(_JSON_DEPTH + 1):
        inner = [x.values() if isinstance(x, dict) else x for x in level if _is_container(x)]
        if not inner:
            return value
        level = list(itertools.chain.from_iterable(inner))
    raise ValueError(too_deep)


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list)


def _open(path: str | os.PathLike[str]) -> IO[bytes]:
    if "://" not in os.fspath(path):
        return open(path, "rb")
    from etils import epath

    return epath.Path(path).open("rb")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def check_free_space(path: str | os.PathLike[str], nbytes: int) -> None:
    """Looks whether something of so many bytes fits on the disk before it is written.

    Raises:
      DiskFullError: it does not.
    """
    if _free_bytes(path) < nbytes:
        raise DiskFullError(path, nbytes)


@contextlib.contextmanager
def told_of_space(path: str | os.PathLike[str], nbytes: int | None = None) -> Iterator[None]:
    """Says of a disk that fills up while the block runs what needs how much room.

    Args:
      path: what the block makes. If it fails, it has removed what it wrote.
      nbytes: how large that would be, where it is known.

    Raises:
      DiskFullError: the disk is full.
    """
    try:
        yield
    except DiskFullError:
        raise
    # TensorStore, Orbax and ArrayRecord raise errors of their own.
    except Exception as error:
        if not is_full(error):
            raise
        raise DiskFullError(path, nbytes) from error


def is_full(error: BaseException) -> bool:
    """Whether an error, or its cause, is that of a full disk, if only by its text."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    if any(os.strerror(code) in str(error) for code in _FULL):
        return True
    return error.__cause__ is not None and is_full(error.__cause__)


def no_space(path: str | os.PathLike[str], nbytes: int | None = None) -> str:
    """What an error says of a disk that has too little room for `path`: needed and free bytes."""
    free = _free_bytes(path)
    # Descriptions and the disk's own tables take some more than the numbers themselves.
    needed = "more" if nbytes is None or nbytes <= free else f"{readable_bytes(nbytes)} of"
    return f"expected {needed} free disk, found {readable_bytes(free)}"


def readable_bytes(nbytes: int) -> str:
    """A number of bytes as people read it, e.g. "4.28 GB" (10^9 bytes)."""
    units = (("bytes", 0), ("kB", 0), ("MB", 1), ("GB", 2), ("TB", 2))
    power = min(int(math.log10(max(nbytes, 1))) // 3, len(units) - 1)
    unit, digits = units[power]
    return f"{nbytes / 1000**power:.{digits}f} {unit}"


def _free_bytes(path: str | os.PathLike[str]) -> int:
    folder = next(p for p in Path(path).absolute().parents if p.exists())
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], nbytes: int | None = None) -> Iterator[Path]:
    """Makes a file that appears under its name complete, or not at all.

    Yields a path beside `path` for the block to write to; when the block ends without an error it
    takes the place of `path`. Makes the folder.

    Args:
      path: the file to make.
      nbytes: how large it will be, where that is known.

    Raises:
      DiskFullError: too little room, before the block or while it runs.
      OSError: the file cannot be written; names `path`, not the temporary file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    if nbytes is not None:
        check_free_space(path, nbytes)
    try:
        with told_of_space(path, nbytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except DiskFullError:
        raise
    except OSError as error:
        if error.filename not in (None, str(temporary), str(path), str(path.parent)):
            raise
        message = f"cannot write it ({error.strerror or error})"
        raise OSError(error.errno, message, str(path)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file so that it is whole or absent; errors as `atomic_file`."""
    content = text.encode()
    with atomic_file(path, len(content)) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file so that it is whole or absent; errors as `atomic_file`.

    Raises:
      ValueError: a NaN or infinity, which JSON does not know.
      TypeError: a value that JSON cannot hold.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_directory(target: str | os.PathLike[str], nbytes: int | None = None) -> Iterator[Path]:
    """Makes a directory that appears under its name complete, or not at all.

    Yields a path beside `target`, where nothing exists yet. What the block makes there becomes
    `target` when the block ends; if it raises, everything is removed, made parents included. What
    processes that were killed have left of the same target is removed, too.

    Args:
      target: the directory to make.
      nbytes: how large it will be, where that is known.

    Raises:
      FileExistsError: before the block runs, if `target` exists and is not an empty directory.
      DiskFullError: too little room, before the block or while it runs.
    """
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists; choose another output or remove it first")
    if nbytes is not None:
        check_free_space(target, nbytes)
    with told_of_space(target, nbytes), _renamed_at_the_end(target) as complete:
        yield complete


@contextlib.contextmanager
def _renamed_at_the_end(target: Path) -> Iterator[Path]:
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


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], on_wait: Callable[[], object]) -> Iterator[None]:
    """Keeps other processes that ask for the same lock waiting until the block ends.

    The lock ends with its process, however that ends. Where a file system has no locks, nobody
    waits.

    Args:
      path: the lock's file, which stays; its folder is made.
      on_wait: called if another process has the lock.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def _remove_abandoned(target: Path) -> None:
    for scratch in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        with contextlib.suppress(OSError), open(scratch / _LOCK, "rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch, ignore_errors=True)
