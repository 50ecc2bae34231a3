"""Checks that need a process of their own."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
