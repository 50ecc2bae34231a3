"""Checks for `doctor` that may crash, hang or print, run in a process of their own."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from internvideo_jax.config import nearest_name
from internvideo_jax.environment import default_dtype, missing_devices
from internvideo_jax.processes import end_with_parent

if TYPE_CHECKING:
    import jax

    from internvideo_jax.kernels.attention import Request

Status = Literal["ok", "note", "bad"]

# Distributions whose module is named otherwise than they are.
MODULES = {
    "absl-py": "absl",
    "faiss-cpu": "faiss",
    "opencv-python-headless": "cv2",
    "orbax-checkpoint": "orbax.checkpoint",
    "pillow": "PIL",
}
# Decoders in order of preference. FFmpeg's own `av1` decodes on some GPUs only.
DECODERS = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("libdav1d", "libaom-av1"),
    "aac": ("aac",),
}
# Products of 16-bit numbers are exact in float32, so that only a broken device comes close to it.
MATMUL_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
      section: heading it stands under.
      name: what was looked at.
      status: "ok"; "note": something optional is missing; "bad": something required is.
      value: what was found.
      advice: what to do; empty when all is well.
    """

    section: str
    name: str
    status: Status
    value: str
    advice: str = ""


def run(requirements: Sequence[str], silence_limit_s: float = 180.0) -> Iterator[Check]:
    """Checks packages, devices, attention and video without risk to this process.

    Loading libtpu or CUDA prints to stderr, waits for a chip that another process holds, or, like
    any extension module, crashes: then the report says so instead of ending.

    Args:
      requirements: the required packages, e.g. `numpy>=2.0`.
      silence_limit_s: how long one check may take; the first contact with a large TPU slice or a
        CUDA device takes tens of seconds.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    section, name = "packages", "start"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        process = context.Process(target=_run, args=(sender, str(log), list(requirements)))
        process.start()
        sender.close()
        while receiver.poll(silence_limit_s):
            try:
                message = receiver.recv()
            except EOFError:
                process.join()
                break
            if isinstance(message, Check):
                yield message
            else:
                section, name = message
        else:
            process.kill()
            process.join()
            yield Check(section, name, "bad", f"no answer for {silence_limit_s:g} s", _last(log))
            return
        if process.exitcode:
            cause = f"exit code {process.exitcode}"
            if process.exitcode < 0:
                cause = signal.Signals(-process.exitcode).name
            found = f"ended its process with {cause}; what follows it is unchecked"
            yield Check(section, name, "bad", found, _last(log))


def _run(sender: Connection, log: str, requirements: list[str]) -> None:
    """The other process: announces each part, then sends what it finds."""
    end_with_parent()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    parts: list[tuple[str, str, Callable[[], Iterator[Check]]]] = [
        ("packages", line, functools.partial(package_checks, line)) for line in requirements
    ]
    parts += [
        ("devices", "jax", device_checks),
        ("attention", "implementations", attention_checks),
        ("video", "PyAV", codec_checks),
    ]
    for section, name, part in parts:
        sender.send((section, name))
        try:
            for check in part():
                sender.send(check)
        except Exception as error:
            found, advice = missing_devices(error) or (_one_line(error), "")
            sender.send(Check(section, name, "bad", found, advice))
    sender.close()


def package_checks(line: str) -> Iterator[Check]:
    """Whether a requirement is installed, recent enough and importable."""
    name = re.split("[<>=!~ ]", line, maxsplit=1)[0]
    bounds, advice = line.removeprefix(name), f"pip install '{line}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", name, "bad", "not installed", advice)
        return
    # Comes with several of the requirements; it is no loss where all of them are missing.
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(bounds).contains(version, prereleases=True):
        found = f"{version}, expected {bounds}"
        yield Check("packages", name, "bad", found, advice)
        return
    module = MODULES.get(name, name.replace("-", "_"))
    try:
        importlib.import_module(module)
    except Exception as error:
        found = f"{version}, but `import {module}` fails: {_one_line(error)}"
        yield Check("packages", name, "bad", found, f"pip install --force-reinstall '{line}'")
        return
    yield Check("packages", name, "ok", version)


def device_checks() -> Iterator[Check]:
    """The devices JAX sees, and on one of each kind the dtype we compute in and a product."""
    import jax

    wanted = os.environ.get("JAX_PLATFORMS", "")
    backend = jax.default_backend()
    if backend == "cpu" and not wanted and Path("/proc/driver/nvidia/version").is_file():
        found = "cpu, although this machine has an NVIDIA GPU"
        advice = "pip install 'internvideo-jax[cuda]'"
        yield Check("devices", "backend", "note", found, advice)
    else:
        yield Check("devices", "backend", "ok", f"{backend} (JAX_PLATFORMS={wanted or 'unset'})")
    kinds: dict[str, list[jax.Device]] = {}
    for device in jax.local_devices():
        kinds.setdefault(device.device_kind, []).append(device)
    for kind, devices in kinds.items():
        device = devices[0]
        dtype = default_dtype(device)
        memory = (device.memory_stats() or {}).get("bytes_limit")
        size = f" with {memory / 2**30:.1f} GiB" if memory else ""
        error = matmul_error(device, dtype)
        found = f"{len(devices)} x {kind}{size}; {dtype}, matmul error {error:.0e}"
        is_right = error < MATMUL_TOLERANCE
        advice = "" if is_right else "wrong products: check this device and its driver"
        yield Check("devices", device.platform, "ok" if is_right else "bad", found, advice)


def matmul_error(device: "jax.Device", dtype: str) -> float:
    """Largest error of a 256x256 product in `dtype`, relative to its largest element."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(2, 256, 256)).astype(np.float32)
    a, b = jax.device_put(arrays, device).astype(dtype)
    product = jax.numpy.matmul(a, b, precision="highest", preferred_element_type="float32")
    expected = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    return float(np.abs(np.asarray(product) - expected).max() / np.abs(expected).max())


def attention_checks() -> Iterator[Check]:
    """The attention implementations, and which is preferred."""
    from internvideo_jax.kernels.attention import available_implementations, select_implementation

    implementations = available_implementations()
    for name, reason in implementations.items():
        yield Check("attention", name, "note" if reason else "ok", reason or "available")
    variable = "INTERNVIDEO_ATTENTION"
    preferred = os.environ.get(variable)
    if not preferred:
        request = _request_of_a_clip()
        chosen, reason = select_implementation(request)
        found = f"unset: for {request.queries:,} tokens in {request.dtype} {chosen} ({reason})"
        yield Check("attention", variable, "ok", found)
    elif preferred not in implementations:
        found = f"{preferred}: unknown{nearest_name(preferred, implementations)}"
        advice = f"set it to one of {', '.join(implementations)}"
        yield Check("attention", variable, "bad", found, advice)
    elif implementations[preferred]:
        found = f"{preferred}: cannot serve here, calls fall back to another"
        yield Check("attention", variable, "note", found)
    else:
        yield Check("attention", variable, "ok", f"{preferred}: used where it can serve")


def _request_of_a_clip() -> "Request":
    """The attention of InternVideo2-1B to 8 frames, in a batch of 8 on the default device."""
    import jax

    from internvideo_jax.kernels.attention import Request
    from internvideo_jax.kernels.attention.request import current_platform
    from internvideo_jax.kernels.attention.shapes import SHAPES

    shape = SHAPES["1b_f8"]
    return Request(
        batch=8,
        queries=shape.tokens,
        keys=shape.tokens,
        heads=shape.heads,
        kv_heads=shape.heads,
        head_dim=shape.head_dim,
        dtype=default_dtype(jax.local_devices()[0]),
        scale=shape.head_dim**-0.5,
        platform=current_platform(),
    )


def codec_checks() -> Iterator[Check]:
    """The decoders in PyAV's FFmpeg."""
    import av
    from av.codec.codec import UnknownCodecError

    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    yield Check("video", "libavcodec", "ok", f"{libavcodec} in PyAV {av.__version__}")
    for codec, decoders in DECODERS.items():
        found = []
        for decoder in decoders:
            with contextlib.suppress(UnknownCodecError):
                found.append(av.Codec(decoder, "r").name)
        if found:
            yield Check("video", codec, "ok", f"decoded by {found[0]}")
            continue
        # Most files are H.264, those of the demo too.
        status: Status = "bad" if codec == "h264" else "note"
        advice = "PyPI's wheels have it: pip install --force-reinstall --only-binary=av av"
        yield Check("video", codec, status, "no decoder", advice)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _last(log: Path) -> str:
    """The last thing the process printed, most often the cause of its end."""
    text = log.read_text(errors="replace").strip() if log.exists() else ""
    return text.splitlines()[-1][:300] if text else ""
