"""What a benchmark reports: rows, the machine, and a table of them."""

import dataclasses
import functools
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import internvideo_jax
from internvideo_jax.environment import usable_cpus

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One timed run.

    Attributes:
      seconds: by the clock.
      cpu_seconds: spent by all threads.
      peak_rss_gb: largest resident memory of the process so far, in 10^9 bytes; None where the
        process does other things too.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_gb: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """Timed runs of one part of the library and, where there is one, of its peer.

    Attributes:
      name: e.g. "encoder_forward/b14".
      samples: our runs.
      peer: what the peer is; empty without one.
      peer_samples: its runs.
      details: facts about the runs, JSON-ready.
    """

    name: str
    samples: tuple[Sample, ...]
    peer: str = ""
    peer_samples: tuple[Sample, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def value(self) -> float:
        """Our median time in seconds."""
        return median(sample.seconds for sample in self.samples)

    @property
    def peer_value(self) -> float:
        """The peer's median time in seconds."""
        return median(sample.seconds for sample in self.peer_samples)

    @property
    def ratio(self) -> float:
        """How many times faster than the peer we are."""
        return self.peer_value / self.value

    def to_json(self) -> dict[str, Any]:
        """The row with its medians; what concerns a peer is absent where there is none."""
        row: dict[str, Any] = {"name": self.name, "unit": "s"} | _figures("", self.samples)
        if self.peer:
            row |= {"peer": self.peer, "ratio": self.ratio}
            row |= _figures("peer_", self.peer_samples)
        return row | self.details


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, aligned for reading as it is."""
    cells = [
        ["name", "time", "CPU time", "peak RSS", "peer", "time", "CPU time", "peak RSS", "ratio"]
    ]
    for row in rows:
        ours = _cells(row.value, row.samples)
        theirs = _cells(row.peer_value, row.peer_samples) if row.peer else ["", "", ""]
        ratio = f"{row.ratio:.2f}" if row.peer else ""
        cells.append([row.name, *ours, row.peer, *theirs, ratio])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    return "\n".join(f"| {line} |" for line in lines)


@functools.cache
def machine() -> dict[str, Any]:
    """The processor, its widest vectors, the CPUs that may be used, memory, and versions."""
    cpu = _first_values(Path("/proc/cpuinfo"))
    flags = cpu.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "")
    versions = {"internvideo-jax": internvideo_jax.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "vectors": vectors,
        "cpus": usable_cpus(),
        "memory_gb": _memory_gb(),
        "system": platform.platform(),
        "versions": versions,
    }


def machine_line(facts: dict[str, Any]) -> str:
    """`machine()` in one line."""
    cpu = " ".join(filter(None, [facts["cpu"], facts["vectors"]]))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    memory = f", {facts['memory_gb']:.0f} GB" if facts["memory_gb"] else ""
    return f"{cpu}, {facts['cpus']} CPUs{memory}; {facts['system']}; {versions}"


def _figures(prefix: str, samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        f"{prefix}value": median(sample.seconds for sample in samples),
        f"{prefix}peak_rss_gb": _peak(samples),
        f"{prefix}cpu_seconds": median(sample.cpu_seconds for sample in samples),
        f"{prefix}seconds": [sample.seconds for sample in samples],
    }


def _peak(samples: Sequence[Sample]) -> float | None:
    known = [sample.peak_rss_gb for sample in samples if sample.peak_rss_gb is not None]
    return max(known, default=None)


def _cells(value: float, samples: Sequence[Sample]) -> list[str]:
    cpu, peak = median(sample.cpu_seconds for sample in samples), _peak(samples)
    return [f"{value:.3g} s", f"{cpu:.3g} s", "" if peak is None else f"{peak:.2f} GB"]


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, OSError, ValueError):
        return None


def _first_values(path: Path) -> dict[str, str]:
    """The first value of each key of a file of `key : value` lines."""
    values: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            values.setdefault(key.strip(), value.strip())
    return values
