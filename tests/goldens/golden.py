"""Golden files: reading them, choosing them, and the registry of their checkers.

A golden holds what the original model computes: `.safetensors` files hold tensors under `state/`,
`in/`, `out/`, `grad/` (and `teacher/`) with a JSON `config` in their metadata, `.json` files hold
tables. `INDEX.json` beside them maps each path to its kind, `<system>.<family>`.

A checker is a function of one `Golden`, registered for a kind; everything it needs stands in the
file. What it leaves unread is a failure, so that no stored value goes unchecked and no option is
silently passed over.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy


class BadGolden(Exception):
    """An index or a choice of goldens that cannot be used as it is; the message says why."""


class Config(Mapping[str, Any]):
    """The options of a golden, nested ones as `Config`s; remembers which were read.

    `in` and `get` of an absent option are free; of a present one they count as a reading.
    """

    def __init__(self, options: Mapping[str, Any], where: str):
        self._options = {
            key: Config(value, f"{where}.{key}") if isinstance(value, dict) else value
            for key, value in options.items()
        }
        self._where = where
        self._unread = set(self._options)

    def __getitem__(self, name: str) -> Any:
        if name not in self._options:
            raise KeyError(f"{self._where} has no option {name!r}; it has {sorted(self._options)}")
        self._unread.discard(name)
        return self._options[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The option, or `default` where the file does not have it."""
        return self[name] if name in self._options else default

    def __contains__(self, name: object) -> bool:
        return name in self._options

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def expect(self, **values: Any) -> None:
        """Fails unless each of these options, where present, has this value."""
        wrong = {k: self[k] for k in values if k in self and self[k] != values[k]}
        if wrong:
            raise AssertionError(f"{self._where}: the checker does not know {wrong}")

    def ignore(self, *names: str) -> None:
        """Declares options irrelevant to what is computed."""
        self._unread.difference_update(names)

    def unread(self) -> list[str]:
        """Dotted names of the options nobody has read."""
        names = [f"{self._where}.{name}" for name in sorted(self._unread)]
        for name in sorted(set(self._options) - self._unread):
            if isinstance(self._options[name], Config):
                names += self._options[name].unread()
        return names


@dataclasses.dataclass(frozen=True)
class GoldenFile:
    """One entry of an index: where the file is, its path in the index, its kind."""

    path: Path
    name: str
    kind: str
    required: bool = False


class Golden:
    """The contents of one golden file; remembers which tensors and options were read."""

    def __init__(self, file: GoldenFile):
        self.file = file
        self._read: set[str] = set()

    @functools.cached_property
    def _contents(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        path = self.file.path
        with safetensors.safe_open(path, framework="np") as f:
            metadata = f.metadata() or {}
        return safetensors.numpy.load_file(path), metadata

    @functools.cached_property
    def table(self) -> Any:
        """Contents of a `.json` golden."""
        return json.loads(self.file.path.read_text(encoding="utf-8"))

    @functools.cached_property
    def config(self) -> Config:
        """Options of the case, from the metadata."""
        return Config(json.loads(self._contents[1]["config"]), "config")

    def names(self, prefix: str = "") -> list[str]:
        """Names of the tensors that start with `prefix`, sorted; does not count as reading."""
        return sorted(name for name in self._contents[0] if name.startswith(prefix))

    def __contains__(self, name: str) -> bool:
        return name in self._contents[0]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self:
            raise KeyError(f"{self.file.name} has no tensor {name!r}")
        self._read.add(name)
        return self._contents[0][name]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """All tensors below `prefix` (such as `grad/`), by the rest of their names."""
        return {name.removeprefix(prefix): self[name] for name in self.names(prefix)}

    def unread(self) -> list[str]:
        """What has not been read: tensors and options."""
        if self.file.path.suffix != ".safetensors":
            return []
        return self.config.unread() + [n for n in self.names() if n not in self._read]


Checker = Callable[[Golden], None]
CHECKERS: dict[str, Checker] = {}


def checker(*kinds: str) -> Callable[[Checker], Checker]:
    """Registers a function as the checker of these kinds."""

    def register(function: Checker) -> Checker:
        for kind in kinds:
            if kind in CHECKERS:
                raise ValueError(f"two checkers for the golden kind {kind}")
            CHECKERS[kind] = function
        return function

    return register


def check(file: GoldenFile) -> None:
    """Runs the checker of a file's kind, or skips, and fails on what the checker left unread."""
    if file.kind not in CHECKERS:
        pytest.skip(f"no checker for {file.kind}")
    golden = Golden(file)
    CHECKERS[file.kind](golden)
    if left := golden.unread():
        raise AssertionError(f"{file.name}: the checker did not look at {', '.join(left)}")


def read_index(root: Path) -> list[GoldenFile]:
    """The files that `root/INDEX.json` lists.

    Raises:
      BadGolden: there is no index, or an entry has no kind.
    """
    path = root / "INDEX.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadGolden(f"expected an index of goldens at {path}: {error}") from error
    if not isinstance(index, dict):
        raise BadGolden(f"expected a JSON object {{path: kind}} in {path}")
    files = []
    for name, kind in index.items():
        if not isinstance(kind, str) or kind.count(".") != 1 or not all(kind.split(".")):
            raise BadGolden(
                f"{path}: expected a kind '<system>.<family>' for {name}, found {kind!r}"
            )
        files.append(GoldenFile(root / name, name, kind))
    return files


def select(
    files: Sequence[GoldenFile], require: Sequence[str], exclude: Sequence[str]
) -> list[GoldenFile]:
    """Drops excluded kinds and marks required ones.

    Args:
      files: all files.
      require: names of systems, kinds (`system.family`) or families.
      exclude: likewise.

    Raises:
      BadGolden: a name fits no file.
    """

    def fits(file: GoldenFile, names: Sequence[str]) -> bool:
        return any(name in (file.kind, *file.kind.split(".")) for name in names)

    def check_names(names: Sequence[str], among: Sequence[GoldenFile], option: str) -> None:
        unknown = [name for name in names if not any(fits(file, [name]) for file in among)]
        if unknown:
            raise BadGolden(f"{option}: no golden file has the system or kind {', '.join(unknown)}")

    check_names(exclude, files, "--goldens-exclude")
    chosen = [
        dataclasses.replace(file, required=fits(file, require))
        for file in files
        if not fits(file, exclude)
    ]
    check_names(require, chosen, "--goldens-require")
    return chosen
