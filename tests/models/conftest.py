from typing import Any

import jax
import numpy as np
import pytest

from internvideo_jax import models


@pytest.fixture(scope="session")
def random_variables():
    """Function that fills a module's variables with noise, without compiling its `init`."""

    def fill(module: Any, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(seed)

        def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            name = path[-1].key
            noise = rng.normal(0, 0.1, leaf.shape).astype(np.float32)
            if name == "var":
                return np.abs(noise) + 1
            return noise + 1 if name in ("scale", "gamma") else noise

        return jax.tree.map_with_path(draw, models.abstract_variables(module))

    return fill


@pytest.fixture(scope="session")
def run():
    """Function that calls a module under jit; keyword options are static."""

    def call(module: Any, variables: Any, *inputs: Any, **options: Any) -> Any:
        return jax.jit(lambda v, *x: module.apply(v, *x, **options))(variables, *inputs)

    return call
