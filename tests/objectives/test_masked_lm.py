import numpy as np

from internvideo_jax.objectives.masked_lm import masked_lm_loss


def test_only_labelled_positions_count():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
    labels = np.array([[-100, 4, -100], [0, -100, -100]])
    rows = logits[[0, 1], [1, 0]]
    log_probabilities = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    expected = -(log_probabilities[0, 4] + log_probabilities[1, 0]) / 2
    np.testing.assert_allclose(masked_lm_loss(logits, labels), expected, rtol=1e-6)


def test_without_any_the_loss_is_zero():
    assert masked_lm_loss(np.ones((1, 2, 3), np.float32), np.full((1, 2), -100)) == 0
