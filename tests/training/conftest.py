from collections.abc import Iterator
from types import ModuleType

import jax
import pytest

from tests.training import toy_stage


@pytest.fixture
def toy(fast_compilation: None) -> ModuleType:
    """The module `toy_stage.py`: a stage, its batches and its config."""
    return toy_stage


@pytest.fixture
def fast_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles faster, to slower programs, and the same program once per test session."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
