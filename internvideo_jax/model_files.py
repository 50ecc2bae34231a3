"""The files of a saved model beside the large ones of its arrays: copied, hashed and compared."""

import concurrent.futures
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from internvideo_jax.preprocessing import Preprocessing

TOKENIZER = "tokenizer"

# Larger files hold the numbers of arrays, which have checksums of their own.
MAX_HASHED_BYTES = 2**20
# Of files that are not those that were saved.
_MAX_LISTED = 10
# Files of a bucket take long to ask for, not to read.
_THREADS = 8


class SavedModelError(ValueError):
    """A directory that is not a saved model, or whose parts do not fit together."""


def hash_files(directory: epath.Path, folder: str) -> dict[str, str]:
    """SHA-256 of every file of at most 1 MiB in a folder, by its path in the directory."""
    walk = (directory / folder).walk()
    paths = sorted(parent / name for parent, _, names in walk for name in names)
    small = [path for path in paths if path.stat().length <= MAX_HASHED_BYTES]
    names = [path.relative_to(directory).as_posix() for path in small]
    return dict(zip(names, _sha256(small), strict=True))


def check_files(directory: epath.Path, digests: Mapping[str, str]) -> None:
    """Compares files with what `hash_files` has found.

    Raises:
      SavedModelError: files are missing or changed; the first ten are listed.
    """
    paths = [directory / name for name in digests]
    found = _sha256(paths)
    errors = [
        f"{path}: {'missing' if sha256 is None else 'damaged (its SHA-256 differs)'}"
        for path, sha256, expected in zip(paths, found, digests.values(), strict=True)
        if sha256 != expected
    ]
    if errors:
        raise SavedModelError(
            f"{len(errors)} of {len(paths)} files are not those that were saved; copy or convert"
            " the model again:\n  "
            + "\n  ".join(errors[:_MAX_LISTED])
            + (f"\n  and {left} more" if (left := len(errors) - _MAX_LISTED) > 0 else "")
        )


def copy_tokenizer_files(
    directory: epath.Path, preprocessing: Preprocessing, sources: Mapping[str, epath.PathLike]
) -> dict[str, str]:
    """Copies tokenizer files beside the arrays.

    Args:
      directory: of the model.
      preprocessing: names the files.
      sources: where to copy them from, by name.

    Returns:
      Their SHA-256 by name.

    Raises:
      SavedModelError: they are not those that the preprocessing names.
    """
    names = preprocessing.text.files if preprocessing.text else ()
    if set(names) != set(sources):
        raise SavedModelError(
            f"expected the tokenizer files that the text preprocessing names"
            f" ({', '.join(names) or 'none'}), found {', '.join(sources) or 'none'}"
        )
    digests = {}
    for name in map(_plain_name, names):
        content = epath.Path(sources[name]).read_bytes()
        (directory / TOKENIZER).mkdir(exist_ok=True)
        (directory / TOKENIZER / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def tokenizer_paths(
    directory: epath.Path, preprocessing: Preprocessing, digests: Any
) -> dict[str, epath.Path]:
    """Paths of a model's tokenizer files by name.

    Args:
      directory: of the model.
      preprocessing: names the files.
      digests: what `copy_tokenizer_files` has returned.

    Raises:
      SavedModelError: files are missing or changed; they are listed.
    """
    digests = digests if isinstance(digests, dict) else {}
    names = preprocessing.text.files if preprocessing.text else ()
    paths = {name: directory / TOKENIZER / _plain_name(name) for name in names}
    check_files(directory, {f"{TOKENIZER}/{name}": digests.get(name, "") for name in paths})
    return paths


def _sha256(paths: Iterable[epath.Path]) -> list[str | None]:
    """Of each file; None where there is none."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(_file_sha256, paths))


def _file_sha256(path: epath.Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain_name(name: str) -> str:
    """`name`, if it cannot lead out of a folder."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise SavedModelError(f"expected the plain name of a tokenizer file, found {name!r}")
    return name
