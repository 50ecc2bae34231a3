"""Settings that hold for every test."""

import os
import signal

import hypothesis
import jax
import pytest

from tests.fast_demo import shared

# The dev extra's libtpu would look for a TPU in every process of the suite.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA adds in another order where there is AVX-512, by which two gradients of the goldens are off by
# 3 and 6 % more than the tolerance: so all machines round alike.
if "xla_cpu_max_isa" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa=AVX2".strip()

# A shared two-core machine pauses at will: the same examples every time, and no time limit on each.
hypothesis.settings.register_profile("internvideo", deadline=None, derandomize=True)
hypothesis.settings.load_profile("internvideo")


def pytest_make_parametrize_id(config, val, argname):
    """Bytes give a test no name: they may hold the time, and processes of one run must agree."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def hangups():
    """SIGHUP is not ignored, even where the tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """What tests keep for later starts is for this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERNVIDEO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def fast_demo(tmp_path_factory):
    """A fast demo that has run; all processes of the suite have the same, and only read it."""
    base = tmp_path_factory.getbasetemp()
    return shared(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory):
    """A process compiles the same program once, whoever asks for it."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
