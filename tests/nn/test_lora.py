import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.nn.lora import LoRAConfig, adaptable_dense
from tests.small_models import fold_lora

CONFIG = LoRAConfig(rank=3, alpha=6.0, dropout_rate=0.5, targets=("q", "proj"))


class Layers(nn.Module):
    """Two linear layers with adapters and one without, heads between them."""

    lora: LoRAConfig | None
    deterministic: bool = True

    @nn.compact
    def __call__(self, x):
        options = {"lora": self.lora, "deterministic": self.deterministic}
        axes = ("embed", "heads", "head_dim")
        q = adaptable_dense((2, 4), axes, jnp.float32, "q", **options)(x)
        v = adaptable_dense((2, 4), axes, jnp.float32, "v", **options)(x)
        proj = adaptable_dense(
            5, axes[1:] + axes[:1], jnp.float32, "proj", axis=(-2, -1), **options
        )
        return proj(q * v)


X = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)


def variables(module):
    return nn.unbox(jax.jit(module.init)(jax.random.key(0), X))


def test_adapters_lie_beside_the_kernels_and_start_as_nothing():
    adapted = variables(Layers(CONFIG))
    shapes = jax.tree.map(jnp.shape, adapted["params"])
    assert shapes["q"] == {
        "kernel": (6, 2, 4),
        "bias": (2, 4),
        "lora_a": (6, 3),
        "lora_b": (3, 2, 4),
    }
    assert shapes["proj"]["lora_a"] == (2, 4, 3)
    assert set(shapes["v"]) == {"kernel", "bias"}
    plain = fold_lora(adapted, CONFIG)
    np.testing.assert_array_equal(Layers(CONFIG).apply(adapted, X), Layers(None).apply(plain, X))


def test_folded_adapters_compute_the_same():
    adapted = variables(Layers(CONFIG))
    noise = np.random.default_rng(1)
    adapted = jax.tree.map(lambda p: p + noise.normal(size=p.shape).astype(np.float32), adapted)
    live = Layers(CONFIG).apply(adapted, X)
    folded = Layers(None).apply(fold_lora(adapted, CONFIG), X)
    np.testing.assert_allclose(live, folded, rtol=1e-4, atol=1e-4)
    assert np.abs(live - Layers(dataclasses.replace(CONFIG, alpha=0.0)).apply(adapted, X)).max() > 1


def test_dropout_falls_on_the_adapters_input_alone():
    adapted = variables(Layers(CONFIG))
    rngs = {"dropout": jax.random.key(1)}
    training = Layers(CONFIG, deterministic=False)
    np.testing.assert_array_equal(
        training.apply(adapted, X, rngs=rngs), Layers(CONFIG).apply(adapted, X)
    )
    adapted["params"]["q"]["lora_b"] += 1.0
    dropped = training.apply(adapted, X, rngs=rngs)
    assert np.abs(dropped - Layers(CONFIG).apply(adapted, X)).max() > 1e-3
