"""What this process was given from outside: CPUs, and the wish to see everything."""

import os


def usable_cpus() -> int:
    """Number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_debugging() -> bool:
    """Whether `INTERNVIDEO_DEBUG` asks for tracebacks and all that is logged."""
    return os.environ.get("INTERNVIDEO_DEBUG", "0") != "0"
