import numpy as np
import pytest

from internvideo_jax.launch.demonstration.probe import draw_labels, probe


def test_a_probe_reads_what_is_linear():
    rng = np.random.default_rng(0)
    features = rng.normal(3, [1, 100, 0.01, 1], (400, 4)).astype(np.float32)
    labels = (features[:, 2] > 3).astype(np.int32)
    drawn = draw_labels(200, 100, 3, seed=0)
    result = probe(features[:200], labels[:200], drawn, features[200:], labels[200:])
    hits = (result.predictions == labels[200:]).mean(1)
    np.testing.assert_allclose(result.accuracies, 100 * hits)
    assert result.mean == pytest.approx(100 * hits.mean())
    assert result.deviation == pytest.approx(100 * hits.std())
    assert result.mean > 95


def test_probes_reach_the_minimum_of_their_loss():
    """Of one standardised feature and two classes: the gradient is zero in closed form."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 1)).astype(np.float32)
    labels = (features[:, 0] + rng.normal(size=60) > 0).astype(np.int32)
    x = (features[:, 0] - features.mean()) / (features.std() + 1e-6)
    # By symmetry the kernel is (-w, w) and the bias (-b, b): plain gradient descent on two numbers.
    w = b = 0.0
    for _ in range(5000):
        p = 1 / (1 + np.exp(-2 * (w * x + b)))
        w -= 0.1 * (2 * np.mean((p - labels) * x) + 2 * 0.01 * w)
        b -= 0.1 * 2 * np.mean(p - labels)
    border = -b / w * (features.std() + 1e-6) + features.mean()
    grid = np.array([[border - 0.01], [border + 0.01]], np.float32)
    result = probe(features, labels, np.arange(60)[None], grid, np.array([0, 1]))
    assert result.predictions.tolist() == [[0, 1]]


def test_draws_are_distinct_and_repeatable():
    drawn = draw_labels(10, 6, 4, seed=1)
    assert drawn.shape == (4, 6)
    assert all(len(set(rows)) == 6 for rows in drawn.tolist())
    assert len({tuple(sorted(rows)) for rows in drawn.tolist()}) > 1
    np.testing.assert_array_equal(draw_labels(10, 6, 4, seed=1), drawn)
    with pytest.raises(ValueError, match="at least 11 clips to draw labels from, found 10"):
        draw_labels(10, 11, 1, seed=0)
