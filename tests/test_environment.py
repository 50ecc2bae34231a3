import importlib.metadata
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from internvideo_jax.environment import (
    compile_plainly,
    default_dtype,
    is_debugging,
    missing_devices,
    printable,
    usable_cpus,
)


def test_usable_cpus():
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("0", False), ("1", True)])
def test_debugging_is_asked_for(monkeypatch, value, expected):
    monkeypatch.delenv("INTERNVIDEO_DEBUG", raising=False)
    if value is not None:
        monkeypatch.setenv("INTERNVIDEO_DEBUG", value)
    assert is_debugging() is expected


def test_default_dtype_is_what_the_device_multiplies():
    def dtype(platform, **attributes):
        return default_dtype(SimpleNamespace(platform=platform, **attributes))

    assert dtype("cpu") == "float32"
    assert dtype("tpu") == "bfloat16"
    assert dtype("gpu", compute_capability="7.5") == "float16"
    assert dtype("gpu", compute_capability="8.0") == "bfloat16"
    assert dtype("gpu", compute_capability="12.0") == "bfloat16"
    assert dtype("gpu", compute_capability="gfx942") == "bfloat16"


@pytest.mark.parametrize(
    ("platforms", "raised", "found", "advice"),
    [
        ("cuda", AssertionError(), "JAX_PLATFORMS=cuda, found none", "internvideo-jax[cuda]"),
        ("tpu", RuntimeError("no\nTPU"), "JAX_PLATFORMS=tpu, found none (no TPU)", "[tpu]"),
        ("x,cpu", RuntimeError("what is x?"), "found none (what is x?)", "set JAX_PLATFORMS=cpu"),
    ],
)
def test_devices_that_are_not_there_are_named(monkeypatch, platforms, raised, found, advice):
    assert missing_devices(AssertionError()) is None

    def fail():
        raise raised

    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr("jax.devices", fail)
    text, remedy = missing_devices(AssertionError())
    assert found in text
    assert advice in remedy
    # An error of something else that has not to do with devices.
    assert missing_devices(ValueError("x")) is None


def test_terminals_are_given_no_control_characters():
    assert printable("a\tb\nc é") == "a\tb\nc é"
    assert printable("\x1b[2Jx\r\x07\u202e") == r"\x1b[2Jx\r\x07\u202e"


_FREED = """
import resource
import numpy as np
from internvideo_jax.environment import keep_freed_memory
kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def test_plain_compilation_is_asked_for_where_it_was_measured(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.11.0")
    assert not compile_plainly()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    assert compile_plainly()
    expected = "--xla_dump_to=x --xla_cpu_use_fusion_emitters=false"
    assert os.environ["XLA_FLAGS"] == expected
    # Whoever has chosen keeps it.
    assert not compile_plainly()
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for the GNU C library")
def test_freed_memory_is_kept_for_the_next_array():
    run = subprocess.run([sys.executable, "-c", _FREED], check=True, capture_output=True, text=True)
    kept, faults = run.stdout.split()
    assert kept == "True"
    # 64 MiB in pages of 4 KiB, or of 2 MiB.
    assert int(faults) < 16
