import pytest

from internvideo_jax.launch.compilation import kernels
from internvideo_jax.parallel.step_time import Kernel

# 128 frames of InternVL.
QUERIES = KEYS = ("bf16", (3200, 128, 257))


@pytest.fixture
def asked(monkeypatch):
    """Shapes of which a profile was asked for."""
    found = []

    def profile(*arguments):
        found.append(arguments)
        if arguments[3] == 4097:
            raise ValueError("expected cycles, found: the profiler died")
        return 7

    monkeypatch.setattr(kernels, "pallas_cycles", profile)
    kernels._profiled.cache_clear()
    yield found
    kernels._profiled.cache_clear()


def test_each_shape_is_profiled_once(asked, capsys):
    cycles = kernels.kernel_cycles("v5e")
    for name in ("attention_forward.3", "attention_forward", "attention_backward.clone"):
        assert cycles(Kernel(name, (QUERIES, KEYS, KEYS))) == 7
    assert asked == [
        ("v5e", is_forward, 1, 257, 257, 3200, 128, "bfloat16") for is_forward in (True, False)
    ]
    assert (
        "profiling attention forward, 257 by 257 tokens, 3200 heads of 128"
        in capsys.readouterr().err
    )


def test_what_has_no_profile_is_left_out(asked, capsys):
    shared = ("bf16", (800, 128, 257))
    assert kernels.kernel_cycles("v5e")(Kernel("flash.2", (QUERIES, KEYS, KEYS))) is None
    assert kernels.kernel_cycles("v4")(Kernel("attention_forward", (QUERIES, KEYS, KEYS))) is None
    assert kernels.kernel_cycles("v5e")(Kernel("attention_forward", (QUERIES, shared))) is None
    assert not asked
    long = ("f32", (16, 88, 4097))
    assert kernels.kernel_cycles("v6e")(Kernel("attention_forward", (long, long, long))) is None
    assert "left out of the estimate: expected cycles" in capsys.readouterr().err
