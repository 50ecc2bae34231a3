import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from internvideo_jax.parallel import aot
from tests.processes import run_cases


@pytest.mark.slow
@pytest.mark.skipif(aot.compiler_version() is None, reason="libtpu is not installed")
def test_with_the_tpu_compiler():
    """JAX and libtpu read the environment when they start: these checks get their own process."""
    run_cases(Path(__file__).with_name("tpu_compiler_cases.py"), **aot.ENVIRONMENT)


def test_importing_the_library_part_leaves_jax_alone():
    code = "import sys, internvideo_jax.parallel.aot; sys.exit('jax' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.parametrize(
    ("amount", "size"),
    [("24.00G", 24 * 2**30), ("512.50M", int(512.5 * 2**20)), ("1.5T", int(1.5 * 2**40))],
)
def test_required_bytes(amount, size):
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory"
        f" required for HLO temporaries ({amount}) exceeds available HBM (15.75G). HLO module: f."
    )
    assert aot.required_bytes(message) == size
    assert aot.required_bytes("RESOURCE_EXHAUSTED: something else (3.0G)") is None


def test_compiler_version_without_compiler(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert aot.compiler_version() is None


@pytest.mark.parametrize("name", ["v5e", "v5e:0x4", "v5e-16", "16x16", "v9z:4x4", "v5e:4x4x4x4"])
def test_what_is_no_topology(name):
    with pytest.raises(ValueError, match=f"for example v5e:4x4, .*; found '{name}'"):
        aot.topology(name)


def test_total_memory():
    assert aot.Memory(arguments=1, outputs=20, temporaries=300, program=4000).total == 4321
