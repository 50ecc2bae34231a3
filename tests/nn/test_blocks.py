import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.nn.blocks import drop_path


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 3))
    out = np.asarray(drop_path(x, jnp.float32(0.25), jax.random.key(0)))
    assert set(np.unique(out.round(4))) == {0.0, np.float32(1.3333)}
    assert (out == out[:, :1]).all()
    assert abs(out.mean() - 1) < 0.05
