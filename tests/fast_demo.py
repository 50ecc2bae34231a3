"""The fast demo as a process, and one that all processes of the suite share."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from internvideo_jax.files import locked, write_text


class FastDemo(NamedTuple):
    """A fast demo that has run to its end; only to be read, by whoever needs one.

    Attributes:
      home: its `$INTERNVIDEO_HOME`.
      output: what it printed.
      programs: where further demos find what it has compiled.
    """

    home: Path
    output: str
    programs: Path


def start(home: Path, programs: Path) -> subprocess.Popen[str]:
    """Starts the fast demo.

    Args:
      home: a home of its own.
      programs: folder of compiled programs: most of the time goes into compiling the same ones.
    """
    environment = os.environ | {
        "INTERNVIDEO_HOME": str(home),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "internvideo_jax.launch.main", "demo", "--fast"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(home: Path, programs: Path) -> str:
    """Runs the demo to its end; returns what it prints. Arguments are those of `start`."""
    process = start(home, programs)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def shared(folder: Path) -> FastDemo:
    """The demo of a run of the suite, which is made first if none of its processes has done so.

    Args:
      folder: that all of these processes have in common.
    """
    home, programs, printed = folder / "fast_demo", folder / "compiled", folder / "fast_demo.txt"
    with locked(folder / ".fast_demo.lock", lambda: None):
        if not printed.exists():
            write_text(printed, finish(home, programs))
    return FastDemo(home, printed.read_text(encoding="utf-8"), programs)
