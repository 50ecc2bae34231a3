"""Checks that need a process of their own."""

import concurrent.futures
import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from internvideo_jax.parallel import hosts

ROOT = Path(__file__).parents[1]


def run_cases(path: Path, **environment: str) -> None:
    """Runs a file of tests in a new process, with these variables of the environment."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def run_without_reader(*argv: str) -> subprocess.CompletedProcess[str]:
    """Runs a command whose output nobody reads (`| true`)."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, "-m", "internvideo_jax.launch.main", *argv],
            cwd=ROOT,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)


def run_on_eight_devices(path: Path) -> None:
    """The number of devices is fixed when JAX starts. Unoptimised code compiles faster."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    run_cases(path, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)


def free_port() -> int:
    """A port at which nobody listens, of those that the system gives to no connection by itself.

    So nobody has it by chance until a process listens there.
    """
    draws = random.SystemRandom()
    while True:
        port = draws.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def join_system(timeout: float = 300.0) -> None:
    """Connects a process that `system` started with the others."""
    if found := hosts.detect():
        hosts.join(found, timeout)
    assert jax.process_count() == int(os.environ[hosts.PROCESSES])


@contextlib.contextmanager
def system(
    count: int,
    devices: int,
    *argv: object,
    only: Sequence[int] | None = None,
) -> Iterator[list[subprocess.Popen[str]]]:
    """Python in processes that form one JAX system: `train` does so, others call `join_system`.

    They compile without optimising, which is faster, and no program twice; what still runs at the
    end is killed.

    Args:
      count: processes.
      devices: of each of them.
      argv: what Python runs, the same in all.
      only: the processes that come; all by default.
    """
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Without those emitters XLA compiles in half the time.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        " --xla_cpu_use_fusion_emitters=false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, argv)],
            env=environment
            | {
                hosts.COORDINATOR: address,
                hosts.PROCESSES: str(count),
                hosts.PROCESS_ID: str(number),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (range(count) if only is None else only)
    ]
    try:
        yield running
    finally:
        for process in running:
            # What it has started may be none of its session.
            for pid in children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.communicate()


def children(pid: int) -> set[int]:
    """The processes that one has started; none once it has ended, or where there is no /proc."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(child) for child in task.read_text().split()}
    return found


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
      code: its exit code; -n of one that signal n killed.
      output: what it wrote to stdout, without the lines of Gloo, by which CPUs talk to each other.
      error: and to stderr.
    """

    code: int
    output: str
    error: str


def ends(running: Sequence[subprocess.Popen[str]], seconds: float = 300.0) -> list[Ended]:
    """Waits for the ends of all processes, all of whose pipes are read meanwhile."""

    def end(process: subprocess.Popen[str]) -> Ended:
        output, error = process.communicate(timeout=seconds)
        lines = output.splitlines(keepends=True)
        output = "".join(line for line in lines if not line.startswith("[Gloo]"))
        return Ended(process.returncode, output, error)

    with concurrent.futures.ThreadPoolExecutor(len(running)) as pool:
        return list(pool.map(end, running))


def outputs(running: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Waits until all processes of a system have ended well; returns what they wrote."""
    said = [process.communicate(timeout=300) for process in running]
    for process, (output, error) in zip(running, said, strict=True):
        assert process.returncode == 0, output + error
    return [output for output, _ in said]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Returns when the condition holds; fails after some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process is there and not only waiting for its parent to hear of its end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@contextlib.contextmanager
def full_disk(size: int = 200_000) -> Iterator[None]:
    """No file may become larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
