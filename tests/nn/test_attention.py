from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.kernels.attention import request
from internvideo_jax.nn.attention import AttentionPooler, SelfAttention, attend


def test_pooler_reports_attention_that_sums_to_one_and_changes_no_output():
    x = jax.random.normal(jax.random.key(0), (2, 7, 8))
    module = AttentionPooler(num_heads=2, out_dim=5)
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(1), x))
    pooled, weights = jax.jit(partial(module.apply, return_weights=True))(variables, x)
    again, none = jax.jit(module.apply)(variables, x)
    assert pooled.shape == (2, 5)
    assert none is None
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(pooled, again, atol=1e-6)


@pytest.mark.parametrize("module", [SelfAttention(num_heads=3), AttentionPooler(3, 4)])
def test_heads_that_do_not_divide_the_width_are_named(module):
    with pytest.raises(ValueError, match="found width 8 and 3 heads"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2, 8)))


def test_a_causal_sequence_of_its_own_is_known_to_begin_at_zero(monkeypatch, caplog):
    """As fused kernels ask for; an offset in an array may be any."""
    monkeypatch.delenv("INTERNVIDEO_ATTENTION", raising=False)
    monkeypatch.setattr(request, "current_platform", lambda: "gpu")
    x = jax.ShapeDtypeStruct((2, 64, 4, 8), jnp.bfloat16)
    for offset, chosen in (
        (0, "cudnn (fused)"),
        (1, "xla_half (short"),
        (jnp.int32(0), "xla_half"),
    ):
        caplog.clear()
        with caplog.at_level("DEBUG", logger="internvideo_jax.kernels.attention"):
            call = partial(attend, is_causal=True, query_offset=offset)
            assert jax.eval_shape(call, x, x, x) == x
        assert caplog.messages[0].startswith(chosen)
