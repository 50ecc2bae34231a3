"""What this process was given from outside, and what its terminal can be given."""

import contextlib
import ctypes
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

_EMITTERS = "xla_cpu_use_fusion_emitters"


def usable_cpus() -> int:
    """Number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_memory() -> int:
    """Bytes of main memory that this process may use, if no other does."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    # What containers may use; "max" is no limit.
    with contextlib.suppress(OSError, ValueError):
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    return min(sizes)


def keep_freed_memory() -> bool:
    """Has this process keep what it frees for the arrays that it makes next.

    The GNU C library returns every large array to the system, page by page, and takes the next one
    from there, which costs small training steps on a CPU some of their time (docs/demo.md). To be
    called before other threads start, as each has a pool of its own otherwise. What the process
    has once held is not free for others until it ends.

    Returns:
      Whether it will; False where the C library is another one.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h.
    options = ((-8, 1), (-4, 0), (-1, 2**31 - 1), (-2, 2**28))
    return sum(set_option(*option) for option in options) == len(options)


def compile_plainly() -> bool:
    """Has XLA compile fusions for CPUs as it did before its emitters of MLIR.

    Small training steps take a tenth less time that way, and a quarter less to compile
    (docs/demo.md). To be called before JAX's first use of a device. Only where that was measured:
    XLA ends a process that gives it a flag which it does not know.

    Returns:
      Whether it will; False with other versions, or where the flag is given already.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not importlib.metadata.version("jaxlib").startswith("0.10.") or _EMITTERS in flags:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} --{_EMITTERS}=false".strip()
    return True


def is_debugging() -> bool:
    """Whether `INTERNVIDEO_DEBUG` asks for tracebacks and all that is logged."""
    return os.environ.get("INTERNVIDEO_DEBUG", "0") != "0"


def home() -> Path:
    """Where models, demo outputs and lists of clips are kept: `$INTERNVIDEO_HOME` or a cache."""
    if chosen := os.environ.get("INTERNVIDEO_HOME"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "internvideo_jax"


def default_dtype(device: "jax.Device") -> str:
    """The dtype that a model computes in on a device unless told otherwise.

    bfloat16 where the hardware multiplies it (TPUs, NVIDIA GPUs since Ampere), float16 on older
    GPUs, float32 on CPUs.
    """
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "gpu":
        # NVIDIA's are "7.5" (T4), "8.0" (A100) ...; AMD's are names such as "gfx942".
        capability = str(device.compute_capability)
        is_old = capability[:1].isdigit() and int(capability.partition(".")[0]) < 8
        return "float16" if is_old else "bfloat16"
    return "float32"


def missing_devices(error: Exception) -> tuple[str, str] | None:
    """What is wrong and what to do, of an error of JAX where its devices are not there; else None.

    JAX fails with a bare AssertionError where `JAX_PLATFORMS` names nothing that it finds.
    """
    if "jax" not in sys.modules or not isinstance(error, AssertionError | RuntimeError):
        return None
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as again:
        reason = " ".join(str(again).split())
    else:
        return None
    wanted = os.environ.get("JAX_PLATFORMS")
    expected = f"the devices of JAX_PLATFORMS={wanted}" if wanted else "devices that JAX can use"
    found = f"none ({reason})" if reason else "none"
    extra = {"tpu": "tpu", "cuda": "cuda", "gpu": "cuda"}.get(str(wanted).partition(",")[0])
    install = f"install 'internvideo-jax[{extra}]' and look at the driver, or " if extra else ""
    return f"expected {expected}, found {found}", f"{install}set JAX_PLATFORMS=cpu to do without"


def printable(text: str, kept: str = "\n\t") -> str:
    """Text in which every control character but the `kept` ones is written as an escape.

    Names in files of any origin may hold sequences that a terminal would obey, or lines.
    """
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text
    )
