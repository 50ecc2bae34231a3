"""Runs in processes of their own, so that peak memory is theirs, and in turns."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import internvideo_jax
from internvideo_jax.launch.benchmarks.report import Row, Sample

PACKAGE = "internvideo_jax.launch.benchmarks"

Say = Callable[[str], object]


def interleave(
    name: str,
    runs: Mapping[str, Callable[[], Sample]],
    repeats: int,
    say: Say,
    details: dict[str, Any],
) -> Row:
    """Calls every run in turn, `repeats` times over: none overlap, and all meet the same load.

    Args:
      name: of the row.
      runs: ours, and after it that of the peer, under the peer's name, where there is one.
      repeats: how often.
      say: called with a line of progress.
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
    return Row(name, tuple(ours), peer, tuple(theirs), details)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a run takes by the clock, and of all threads."""
    cpu, start = time.process_time(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return seconds, time.process_time() - cpu


class Worker:
    """A module of this package that runs as a process and is told when to measure (see `serve`)."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._name = " ".join((module, *arguments[:1]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{PACKAGE}.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            self._process.kill()
        # Closes its standard input, which ends `serve`.
        self._process.communicate()

    def measure(self) -> Sample:
        """One timed run.

        Raises:
          ChildProcessError: as `answer`.
        """
        assert self._process.stdin is not None
        # A worker that has died is noticed, and explained, when it does not answer.
        with contextlib.suppress(BrokenPipeError):
            print("run", file=self._process.stdin, flush=True)
        return Sample(**self.answer())

    def answer(self) -> dict[str, Any]:
        """What the worker has to say next: of its preparation, then of each run.

        Raises:
          ChildProcessError: the worker has died; its own message is on the standard error.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ChildProcessError(
                f"the benchmark's worker `{self._name}` ended with exit code {code} before it"
                " answered; its own message is above"
            )
        return json.loads(line)


def serve(prepare: Callable[[], tuple[Callable[[], object], dict[str, Any]]]) -> None:
    """The worker's side: prepares, then times one run for each line on the standard input.

    Args:
      prepare: returns what to run, already warm, and what the first `Worker.answer` is.
    """
    # The pipe is for answers alone: what libraries print goes to the standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run, facts = prepare()
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        sample = Sample(*timed(run), _own_peak_rss_gb())
        print(json.dumps(dataclasses.asdict(sample)), file=answers, flush=True)


def sides(peer: str, module: str, advice: str, say: Say) -> list[str]:
    """Names of the sides: this library, and the peer if its module is installed."""
    if importlib.util.find_spec(module) is not None:
        return ["internvideo_jax", peer]
    say(f"{peer} is not installed: {advice} for the comparison")
    return ["internvideo_jax"]


def limit_threads(count: int) -> None:
    """Confines this process to `count` CPUs; call it before a library starts its threads."""
    # What XLA makes of it where the system has no affinity.
    os.environ["NPROC"] = str(count)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def run_command(*command: str) -> Sample:
    """Runs `internvideo-jax COMMAND...` to its end and measures it from outside.

    Raises:
      ChildProcessError: it failed; the message holds what it printed.
    """
    arguments = [sys.executable, "-m", f"{PACKAGE}.timed_command", *command]
    done = subprocess.run(
        arguments, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        printed = "\n".join(filter(None, [done.stdout, done.stderr]))
        raise ChildProcessError(f"`internvideo-jax {' '.join(command)}` failed:\n{printed}")
    return Sample(**json.loads(done.stdout))


def environment() -> dict[str, str]:
    """Our environment, for a child that must find the package where we found it, and the CPU."""
    root = str(Path(internvideo_jax.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}


def rss_gb(usage: resource.struct_rusage) -> float:
    """Peak resident memory in 10^9 bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _own_peak_rss_gb() -> float:
    """Peak memory of this program alone: on Linux `ru_maxrss` begins with that of the parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line[:5] == "VmHWM")
    return rss_gb(resource.getrusage(resource.RUSAGE_SELF))
