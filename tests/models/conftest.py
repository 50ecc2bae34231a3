from typing import Any

import jax
import numpy as np
import pytest

from internvideo_jax import models
from tests.small_models import noise_like


@pytest.fixture(scope="session")
def random_variables():
    """Function that fills a module's variables with noise, factors and variances about 1."""

    def fill(module: Any, seed: int = 0) -> dict[str, Any]:
        def shift(path: Any, leaf: jax.Array) -> np.ndarray:
            return np.array(leaf) + np.float32(path[-1].key in ("scale", "gamma", "var"))

        return jax.tree.map_with_path(shift, noise_like(models.abstract_variables(module), seed))

    return fill


@pytest.fixture(scope="session")
def run():
    """Function that calls a module under jit; keyword options are static."""

    def call(module: Any, variables: Any, *inputs: Any, **options: Any) -> Any:
        return jax.jit(lambda v, *x: module.apply(v, *x, **options))(variables, *inputs)

    return call
