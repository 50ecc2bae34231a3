"""`python -m ...timed_command COMMAND...`: runs `internvideo-jax COMMAND...` and measures it.

A small process of its own, because on Linux a program's `ru_maxrss` begins with the memory of the
process that started it.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time

from internvideo_jax.launch.benchmarks.processes import rss_gb
from internvideo_jax.launch.benchmarks.report import Sample


def main() -> int:
    """Prints a `Sample` as JSON; returns the command's exit code if it is not 0."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "internvideo_jax.launch.main", *sys.argv[1:]], stdout=sys.stderr
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return 1
    sample = Sample(seconds, usage.ru_utime + usage.ru_stime, rss_gb(usage))
    print(json.dumps(dataclasses.asdict(sample)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
