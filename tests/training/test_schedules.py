import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_jax.training.schedules import warmup_cosine


def reference(peak, final, total, warmup, start) -> np.ndarray:
    """Upstream's table in float64, in its own form."""
    rise = np.linspace(start, peak, warmup)
    steps = np.arange(total - warmup)
    fall = final + 0.5 * (peak - final) * (1 + np.cos(np.pi * steps / max(len(steps), 1)))
    return np.concatenate([rise, fall])


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
    schedule = warmup_cosine(peak, final, total, warmup, start)
    # A fixed number of steps, so that nothing compiles anew.
    steps = np.linspace(0, total - 1, 100).astype(np.int32)
    expected = reference(peak, final, total, warmup, start)[steps]
    np.testing.assert_allclose(schedule(steps), expected, rtol=2e-6, atol=1e-15)


def test_the_peak_comes_twice_and_the_end_is_held() -> None:
    schedule = warmup_cosine(1.0, 0.1, 20, 5, 0.2)
    np.testing.assert_allclose(schedule(np.arange(6)), [0.2, 0.4, 0.6, 0.8, 1, 1], rtol=1e-6)
    assert schedule(19) > 0.1
    np.testing.assert_allclose([schedule(20), schedule(10**6)], 0.1, rtol=1e-6)


def test_schedules_are_jit_able_and_float32() -> None:
    schedule = warmup_cosine(2.4e-3, 1.6e-4, 1000, 100)
    for step in (0, 99, 100, 999):
        traced = jax.jit(schedule)(jnp.int32(step))
        assert traced.dtype == jnp.float32
        np.testing.assert_allclose(traced, schedule(step), rtol=1e-6)


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (10, 11), (10, -1)])
def test_impossible_lengths_are_refused(total, warmup) -> None:
    with pytest.raises(ValueError, match=f"warmup_steps={warmup} of total_steps={total}"):
        warmup_cosine(1.0, 0.0, total, warmup)
