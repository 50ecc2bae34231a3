import jax
import numpy as np

from internvideo_jax.objectives.masked_lm import (
    Vocabulary,
    draw_word_masks,
    mask_words,
    masked_lm_loss,
)


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


def test_padding_and_first_tokens_are_not_masked():
    vocabulary = Vocabulary(size=50, pad_id=0, cls_id=1, mask_id=3)
    ids = np.array([[1, 10, 11, 2, 0]] * 2000)
    masks = draw_word_masks(jax.random.key(0), ids.shape, vocabulary.size)
    shown, labels = (np.asarray(x) for x in mask_words(ids, masks, vocabulary))
    np.testing.assert_array_equal(shown[labels == -100], ids[labels == -100])
    np.testing.assert_array_equal(labels[labels != -100], ids[labels != -100])
    assert (labels[:, [0, 4]] == -100).all()
    chosen = labels[:, 1:4] != -100
    # Shares of 6000 and of 3000 draws.
    np.testing.assert_allclose(chosen.mean(), 0.5, atol=0.03)
    words = shown[:, 1:4]
    np.testing.assert_allclose((words[chosen] == 3).mean(), 0.802, atol=0.04)
    np.testing.assert_allclose((words == ids[:, 1:4])[chosen].mean(), 0.102, atol=0.03)
