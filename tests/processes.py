"""Checks that need a process of their own."""

import os
import subprocess
import sys
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


def run_on_eight_devices(path: Path) -> None:
    """The number of devices is fixed when JAX starts. Unoptimised code compiles faster."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    run_cases(path, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
