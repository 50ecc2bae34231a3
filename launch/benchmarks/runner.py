"""Timed runs in processes of their own and in turns, and what is reported of them.

It must not import NumPy: the processes of `worker` import it before their threads are limited.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import io
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import median
from typing import Any

import internvideo_jax
from internvideo_jax.environment import usable_cpus
from internvideo_jax.processes import end_with_parent

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")

OURS = "internvideo_jax"

Details = dict[str, Any]


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
    samples: list[Sample]
    peer: str = ""
    peer_samples: list[Sample] = dataclasses.field(default_factory=list)
    details: Details = dataclasses.field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """True: times are not judged."""
        return True

    def to_json(self) -> dict[str, Any]:
        """The row with its medians and, beside a peer, how many times faster than it we are."""
        row: dict[str, Any] = {"name": self.name, "unit": "s"}
        for prefix, samples in (("", self.samples), ("peer_", self.peer_samples)):
            if samples:
                row[f"{prefix}value"] = median(sample.seconds for sample in samples)
                row[f"{prefix}peak_rss_gb"] = _peak(samples)
                row[f"{prefix}cpu_seconds"] = median(sample.cpu_seconds for sample in samples)
                row[f"{prefix}seconds"] = [sample.seconds for sample in samples]
        if self.peer:
            row |= {"peer": self.peer, "ratio": row["peer_value"] / row["value"]}
        return row | self.details

    def table(self) -> str:
        """The row as a Markdown table."""
        row = self.to_json()
        columns = [("name", self.name), *_columns(row, "")]
        columns += [("peer", self.peer), *_columns(row, "peer_")]
        columns.append(("ratio", f"{row['ratio']:.2f}" if self.peer else ""))
        return markdown_table(columns)


def markdown_table(columns: Sequence[tuple[str, str]]) -> str:
    """Titles and values as a Markdown table of one row, aligned for reading as it is."""
    widths = [max(map(len, column)) for column in columns]
    titles, values = zip(*columns, strict=True)
    lines = (titles, ["-" * width for width in widths], values)
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


def interleave(
    name: str,
    runs: Mapping[str, Callable[[], Sample]],
    repeats: int,
    details: Details,
) -> Row:
    """Calls every run in turn, `repeats` times over: none overlap, and all meet the same load.

    Args:
      name: of the row.
      runs: ours, and after it that of the peer, under the peer's name, where there is one.
      repeats: how often.
      details: of the row.
    """
    samples: dict[str, list[Sample]] = {side: [] for side in runs}
    for i in range(repeats):
        for side, run in runs.items():
            samples[side].append(run())
        times = ", ".join(f"{side} {done[-1].seconds:.3g} s" for side, done in samples.items())
        say(f"{name}: run {i + 1} of {repeats}: {times}")
    (_, ours), *peers = samples.items()
    peer, theirs = peers[0] if peers else ("", [])
    return Row(name, ours, peer, theirs, details)


def say(message: str) -> None:
    """Prints a line of progress."""
    print(message, file=sys.stderr, flush=True)


def sides(peer: str, advice: str, *modules: str) -> list[str]:
    """Names of the sides: this library, and the peer if its modules are installed."""
    if all(importlib.util.find_spec(module) is not None for module in modules):
        return [OURS, peer]
    say(f"{peer} is not installed: {advice} for the comparison")
    return [OURS]


@contextlib.contextmanager
def worker(
    prepare: Callable[..., tuple[Callable[[], object], Any]], *arguments: Any, threads: int
) -> Iterator[tuple[Any, Callable[[], Sample]]]:
    """A process that makes something ready and then times one run of it at every call.

    Args:
      prepare: called in the process; returns what to run, already warm, and facts about it.
      arguments: of `prepare`.
      threads: of the process, on so many CPUs.

    Yields:
      The facts, and what makes a timed run.

    Raises:
      ChildProcessError: the process has died.
    """
    with _process(_limit_threads, threads) as call:
        facts = call(_prepare, prepare, arguments)
        yield facts, lambda: call(_measure)


def run_command(*command: str) -> Sample:
    """Runs `internvideo-jax COMMAND...` in a process of its own, whose start counts.

    Raises:
      ChildProcessError: it failed; the message holds what it printed.
    """
    start = time.perf_counter()
    with _process() as call:
        code, printed, cpu_seconds, peak = call(_command, command)
    seconds = time.perf_counter() - start
    if code:
        raise ChildProcessError(f"`internvideo-jax {' '.join(command)}` failed:\n{printed}")
    return Sample(seconds, cpu_seconds, peak)


def run_function(function: Callable[..., object], *arguments: Any) -> Sample:
    """Calls a function of a module in a process of its own, whose start counts.

    Raises:
      ChildProcessError: the process has died.
    """
    start = time.perf_counter()
    with _process() as call:
        cpu_seconds, peak = call(_called, function, arguments)
    return Sample(time.perf_counter() - start, cpu_seconds, peak)


def run_apart(
    function: Callable[..., Any], *arguments: Any, threads: int, limit_s: float | None = None
) -> Any:
    """What a function of a module returns in a process of its own, on so many CPUs.

    Raises:
      ChildProcessError: the process has died.
      TimeoutError: it has not answered within the limit, and is ended.
    """
    with _process(_limit_threads, threads, limit_s=limit_s) as call:
        return call(function, *arguments)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a run takes by the clock, and of all threads."""
    cpu, start = time.process_time(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return seconds, time.process_time() - cpu


@functools.cache
def machine() -> dict[str, Any]:
    """The processor, its widest vectors, the CPUs that may be used, memory, and versions."""
    file = Path("/proc/cpuinfo")
    cpu = file.read_text(encoding="utf-8") if file.is_file() else ""
    model = re.search(r"^model name\s*: (.*)", cpu, re.MULTILINE)
    vectors = re.search(r"\bavx512f\b", cpu) or re.search(r"\bavx2\b", cpu)
    versions = {"internvideo-jax": internvideo_jax.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": model[1] if model else platform.machine(),
        "vectors": vectors[0] if vectors else "",
        "cpus": usable_cpus(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "system": platform.platform(),
        "versions": versions,
    }


def machine_line() -> str:
    """`machine()` in one line."""
    facts = machine()
    cpu = " ".join(filter(None, [facts["cpu"], facts["vectors"]]))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    memory = f"{facts['memory_gb']:.0f} GB"
    return f"{cpu}, {facts['cpus']} CPUs, {memory}; {facts['system']}; {versions}"


@contextlib.contextmanager
def _process(
    initializer: Callable[..., None] | None = None, *initargs: Any, limit_s: float | None = None
) -> Iterator[Callable[..., Any]]:
    """A new process, as a function that calls functions of modules there, one after the other."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, context, _start, (initializer, *initargs)
    ) as pool:
        try:
            yield lambda function, *arguments: pool.submit(function, *arguments).result(limit_s)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process of the benchmark ended before it answered; look above for its own"
                " message, and whether there is memory enough"
            ) from error
        except BaseException:
            # Who interrupts a benchmark need not wait for the end of its run, nor for one too long.
            for child in multiprocessing.active_children():
                child.kill()
            raise


def _start(initializer: Callable[..., None] | None, *initargs: Any) -> None:
    end_with_parent()
    if initializer is not None:
        initializer(*initargs)


def _limit_threads(count: int) -> None:
    """Confines this process to `count` CPUs, before a library starts its threads."""
    # What libraries print must not mix with the table.
    os.dup2(2, 1)
    # What XLA makes of it where the system has no affinity.
    os.environ["NPROC"] = str(count)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


# In a process of `worker`: what it has prepared.
_runs: list[Callable[[], object]] = []


def _prepare(prepare: Callable[..., tuple[Callable[[], object], Any]], arguments: Any) -> Any:
    run, facts = prepare(*arguments)
    _runs.append(run)
    return facts


def _measure() -> Sample:
    return Sample(*timed(_runs[-1]), _own_peak_rss_gb())


def _command(command: tuple[str, ...]) -> tuple[int, str, float, float | None]:
    from internvideo_jax.launch.main import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(command)
    return code, printed.getvalue(), time.process_time(), _own_peak_rss_gb()


def _called(function: Callable[..., object], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    function(*arguments)
    return time.process_time(), _own_peak_rss_gb()


def _own_peak_rss_gb() -> float | None:
    """Peak memory of this program alone: `ru_maxrss` begins with that of the parent."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 / 1e9 if found else None


def _peak(samples: list[Sample]) -> float | None:
    known = [sample.peak_rss_gb for sample in samples if sample.peak_rss_gb is not None]
    return max(known, default=None)


def _columns(row: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    titles = {"value": "time", "cpu_seconds": "CPU time", "peak_rss_gb": "peak RSS"}
    return [
        (title, "" if (x := row.get(f"{prefix}{key}")) is None else _with_unit(key, x))
        for key, title in titles.items()
    ]


def _with_unit(key: str, value: float) -> str:
    return f"{value:.2f} GB" if key == "peak_rss_gb" else f"{value:.3g} s"
