"""Result cards: what a result was measured with, so that it can be measured again."""

import functools
import hashlib
import importlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from internvideo_jax import __version__
from internvideo_jax.files import write_json, write_text

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel

# What decides about decoded pixels and about arithmetic.
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "av", "cv2", "PIL")
# Items of a list that result.md shows.
_MAX_LISTED = 5


def environment(dtype: str) -> dict[str, Any]:
    """Versions, device and dtype of this process."""
    device = jax.devices()[0]
    versions = {name: importlib.import_module(name).__version__ for name in PACKAGES}
    return {
        "dtype": dtype,
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": {
            "internvideo_jax": __version__,
            "commit": code_commit(),
            "python": platform.python_version(),
            **versions,
        },
    }


@functools.cache
def code_commit() -> str | None:
    """The commit of the code that runs, as far as that is known.

    A checkout says so by git, with "-dirty" behind it where tracked files are not those of the
    commit; a package that pip has installed from a repository keeps it beside its metadata.
    """
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        try:
            found = subprocess.run(
                ["git", "-C", str(root), *describe], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return found.stdout.strip()
    try:
        origin = importlib.metadata.distribution("internvideo-jax").read_text("direct_url.json")
        commit = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    return None if commit is None else str(commit)


def model_entry(
    model: "SavedModel", name: str, directory: Path, sums: Mapping[Path, str]
) -> dict[str, Any]:
    """What a card says of a model.

    Args:
      model: it.
      name: of its folder.
      directory: its folder.
      sums: SHA-256 of the folder's files.
    """
    return {
        "name": name,
        "architecture": type(model.module).__name__,
        "sha256": combined_sha256(sums, directory),
        "source": model.metadata.get("source"),
    }


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """Writes result.md, and then result.json: a folder with that is complete.

    Args:
      directory: where to.
      card: ready for JSON: `task`, `metrics`, and what they depend on.
    """
    settings = {name: value for name, value in card.items() if name not in ("task", "metrics")}
    rows = [f"| {name} | {_cell(value)} |" for name, value in _flat(settings)]
    lines = [
        f"# {card['task'].capitalize()}",
        "",
        metrics_table(card["metrics"]),
        "",
        "| setting | value |",
        "|---|---|",
        *rows,
    ]
    write_text(directory / "result.md", "\n".join(lines) + "\n")
    write_json(directory / "result.json", card)


def metrics_table(metrics: Mapping[str, float]) -> str:
    """Metrics as a Markdown table, aligned for reading as it is.

    Those that are called "kind/name" have a column for each kind.
    """
    columns: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, _, own = name.rpartition("/")
        columns.setdefault(kind, {})[own] = value
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    table = [["metric", *(kind or "value" for kind in columns)]]
    for name in names:
        cells = (f"{c[name]:.2f}" if name in c else "" for c in columns.values())
        table.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [
        " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
    marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows.insert(1, " | ".join(marks))
    return "\n".join(f"| {row} |" for row in rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by their dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _cell(value: Any) -> str:
    """A value as a cell of a table; long lists by their number."""
    if isinstance(value, list) and len(value) > _MAX_LISTED:
        return f"{len(value)} (see result.json)"
    text = "none" if value in (None, [], {}) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


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
