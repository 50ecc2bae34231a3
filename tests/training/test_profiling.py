"""Steps of a run are traced where they are asked for."""

import jax
import pytest

from internvideo_jax.training.profiling import Profile
from tests.training import toy_stage as toy
from tests.training.test_loop import Stop, broken_off, run


@pytest.mark.parametrize(
    ("steps", "started", "stopped"),
    [
        (None, [], []),
        ((2, 4), [2], [4]),
        ((1, 1), [1], [1]),
        # A run that goes on within them, after them, and one that ends before their end.
        ((-1, 2), [1], [2]),
        ((-5, 0), [], []),
        ((4, 9), [4], [6]),
    ],
)
def test_the_steps_that_are_traced(monkeypatch, tmp_path, steps, started, stopped):
    found = [], []
    now = 0
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: found[0].append(now))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found[1].append(now))
    with Profile(steps, tmp_path) as profile:
        for now in range(1, 6):
            profile.before(now)
            assert profile.after(now, None) == (steps is not None and [now] == stopped)
        now = 6
    assert found == (started, stopped)


def test_a_run_leaves_traces_even_if_it_breaks_off(tmp_path, capsys):
    config = toy.make_config()
    with pytest.raises(Stop):
        run(tmp_path, config, data=broken_off(toy.batches(config), 3), profile_steps=(2, 5))
    assert len(list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))) == 1
    assert "traced up to step" not in capsys.readouterr().err
