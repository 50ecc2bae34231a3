import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_jax.training.schedules import floored_cosine, warmup_cosine


@given(
    total=st.integers(1, 300),
    share=st.floats(0, 1),
    peak=st.floats(1e-5, 1e-2),
    final=st.floats(0, 1e-5),
    start=st.floats(0, 1e-5),
)
@settings(max_examples=50)
def test_values_are_upstreams_table(total, share, peak, final, start) -> None:
    warmup = int(share * total)
    rise = np.linspace(start, peak, warmup)
    steps = np.arange(total - warmup)
    fall = final + 0.5 * (peak - final) * (1 + np.cos(np.pi * steps / max(len(steps), 1)))
    # A fixed number of steps, so that nothing compiles anew.
    shown = np.linspace(0, total - 1, 100).astype(np.int32)
    values = warmup_cosine(peak, final, total, warmup, start)(shown)
    np.testing.assert_allclose(values, np.concatenate([rise, fall])[shown], rtol=2e-6, atol=1e-15)


def test_the_end_is_held_and_values_are_float32_under_jit() -> None:
    schedule = warmup_cosine(1.0, 0.1, 20, 5, 0.2)
    assert schedule(19) > 0.1
    np.testing.assert_allclose([schedule(20), schedule(10**6)], 0.1, rtol=1e-6)
    assert jax.jit(schedule)(jnp.int32(3)).dtype == jnp.float32


def test_the_floor_holds_at_both_ends_and_afterwards() -> None:
    schedule = floored_cosine(2.0, 0.02, 100, 10)
    np.testing.assert_allclose([schedule(s) for s in (0, 5, 10, 55)], [0.02, 1, 2, 1], rtol=1e-6)
    np.testing.assert_allclose([schedule(s) for s in (99, 100, 150)], 0.02, rtol=1e-6)
    np.testing.assert_allclose(floored_cosine(1.0, 0.1, 4)(0), 1.0)
