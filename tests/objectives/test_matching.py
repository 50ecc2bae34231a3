import jax
import numpy as np
import pytest

from internvideo_jax.objectives import matching
from internvideo_jax.objectives.matching import (
    draw_negatives,
    matching_loss,
    take_of_group,
    triples,
)

# Two groups of four; the second has one id alone.
IDS = np.array([0, 1, 0, 2, 5, 5, 5, 5])
TEMPERATURE = np.float32(0.05)


def embeddings(size=8):
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(size, 6)).astype(np.float32) for _ in range(2))


def test_negatives_are_others_of_the_same_group():
    negatives = draw_negatives(jax.random.key(0), *embeddings(), TEMPERATURE, IDS, group=4)
    np.testing.assert_array_equal(negatives.is_valid, [True] * 4 + [False] * 4)
    for rows in (negatives.media, negatives.text):
        assert (IDS[rows[:4]] != IDS[:4]).all()
        np.testing.assert_array_equal(rows // 4, np.arange(8) // 4)


def test_without_groups_they_are_others_of_the_batch():
    negatives = draw_negatives(jax.random.key(0), *embeddings(), TEMPERATURE, IDS, group=None)
    assert negatives.is_valid.all()
    for rows in (negatives.media, negatives.text):
        assert (IDS[rows] != IDS).all()
    x = np.arange(8.0)[:, None]
    np.testing.assert_array_equal(take_of_group(x, negatives.text, None)[:, 0], negatives.text)
    alike = draw_negatives(
        jax.random.key(0), *embeddings(), TEMPERATURE, np.zeros_like(IDS), group=None
    )
    assert not alike.is_valid.any()
    np.testing.assert_array_equal(alike.media, np.arange(8))


@pytest.mark.parametrize(("group", "chunk"), [(4, 1024), (None, 1024), (None, 3)])
def test_they_are_drawn_in_proportion_to_the_softmax_of_similarities(monkeypatch, group, chunk):
    """Also where the batch is gone through in parts, the last of them shorter."""
    monkeypatch.setattr(matching, "CHUNK", chunk)
    media, text = embeddings(4)
    ids = np.arange(4)
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.vmap(lambda key: draw_negatives(key, media, text, np.float32(0.5), ids, group))
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (media, text)]
    products = units[1] @ units[0].T, units[0] @ units[1].T
    for rows, logits in zip(draw(keys)[:2], products, strict=True):
        weights = np.exp(logits / 0.5) * (1 - np.eye(4))
        weights /= weights.sum(1, keepdims=True)
        shares = (np.asarray(rows)[..., None] == np.arange(4)).mean(0)
        # Five standard deviations of a share of 4000 draws.
        np.testing.assert_allclose(shares, weights, atol=0.04)


def test_a_close_positive_does_not_hide_the_negatives():
    media = np.eye(2, dtype=np.float32)
    negatives = draw_negatives(
        jax.random.key(0), media, media, np.float32(1e-3), np.array([3, 4]), 2
    )
    np.testing.assert_array_equal(negatives.media, [1, 0])
    np.testing.assert_array_equal(negatives.text, [1, 0])


def test_examples_without_negatives_count_as_matches_alone():
    logits = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    is_valid = np.array([True, False])
    log_probabilities = jax.nn.log_softmax(logits)
    expected = log_probabilities[[0, 1, 2, 3], [1, 0, 0, 1]]
    np.testing.assert_allclose(matching_loss(logits, is_valid), -expected.mean(), rtol=1e-6)


def test_rows_are_taken_and_put_side_by_side():
    x = np.arange(8.0)[:, None]
    others = take_of_group(x, np.array([3, 2, 1, 0, 4, 4, 7, 7]), group=4)
    np.testing.assert_array_equal(others[:, 0], [3, 2, 1, 0, 4, 4, 7, 7])
    np.testing.assert_array_equal(triples(x, others)[:4, 0], [0, 3, 1, 2])


@pytest.mark.parametrize("group", [0, 3])
def test_groups_must_divide_the_batch(group):
    with pytest.raises(ValueError, match=f"match_group.*found {group}"):
        take_of_group(np.zeros((8, 1)), np.arange(8), group)
