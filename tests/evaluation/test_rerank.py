"""Reranking; the scores of the original are in the goldens."""

import dataclasses

import jax
import numpy as np
import pytest

from internvideo_jax.evaluation.retrieval import rerank
from internvideo_jax.evaluation.retrieval.metrics import Scores
from internvideo_jax.evaluation.retrieval.rerank import (
    Candidates,
    TextTokens,
    best_candidates,
    match_scores,
    reranked,
)
from internvideo_jax.models import abstract_variables, build
from tests.small_models import STAGE2, noise_like

NUM_MEDIA, NUM_TEXTS = 5, 9


@pytest.fixture(scope="module")
def model():
    module = build(STAGE2["visual"])
    return module, noise_like(abstract_variables(module), 0, 0.3)


@pytest.fixture(scope="module")
def tokens():
    """Of media `[V, M, E]`, and of texts of different lengths."""
    rng = np.random.default_rng(0)
    media = rng.normal(size=(NUM_MEDIA, 4, 32)).astype(np.float32)
    mask = (np.arange(8) < rng.integers(2, 9, (NUM_TEXTS, 1))).astype(np.int32)
    texts = TextTokens(rng.normal(size=(NUM_TEXTS, 8, 16)).astype(np.float32), mask)
    return media, texts


def test_scores_are_those_of_pair_by_pair_and_media_are_asked_for_once(model, tokens, monkeypatch):
    module, variables = model
    media, texts = tokens
    asked, shapes = [], set()
    score = rerank._score

    def counting(variables, media, texts, rows, **options):
        shapes.add(rows.shape)
        return score(variables, media, texts, rows, **options)

    monkeypatch.setattr(rerank, "_score", counting)
    texts_of = {0: np.arange(NUM_TEXTS), 3: np.array([7, 2]), 4: np.array([1])}

    def tokens_of(number):
        asked.append(number)
        return media[number]

    found = match_scores(module, variables, "video", tokens_of, texts, texts_of, texts_per_pass=4)
    found = dict(found)
    assert sorted(asked) == sorted(found) == [0, 3, 4]
    # One program serves all.
    assert shapes == {(1, 4)}

    @jax.jit
    def pair(media, tokens, mask):
        fused = module.apply(variables, tokens, mask, media, method="fuse")
        return module.apply(variables, fused, "video", method="match_logits")[0, 1]

    for v, own in texts_of.items():
        expected = [pair(media[v, None], texts.tokens[[t]], texts.mask[[t]]) for t in own]
        np.testing.assert_allclose(found[v], expected, atol=1e-5)


def test_candidates_are_the_best_of_each_query_with_lower_numbers_first():
    scores = np.array([[3, 1, 2, 1], [0, 0, 0, 0], [1, 5, 0, 9]], np.float32)
    chosen = best_candidates(Scores.symmetric(scores), 2)
    assert chosen.of_texts.tolist() == [
        [True, False, True, False], [True, True, False, False], [False, True, False, True]
    ]  # fmt: skip
    assert chosen.of_media.sum(axis=1).tolist() == [2, 2, 2, 2]
    assert chosen.of_media[0].tolist() == [True, False, True]
    assert chosen.texts_of().keys() == {0, 1, 2}
    with pytest.raises(ValueError, match="k=0"):
        best_candidates(Scores.symmetric(scores), 0)


def test_pairs_that_both_directions_want_are_looked_at_once():
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(100, 100)) + 3 * np.eye(100)
    chosen = best_candidates(Scores.symmetric(similarity), 13)
    pairs = sum(map(len, chosen.texts_of().values()))
    assert 13 * 100 < pairs == chosen.pairs.sum() < 2 * 13 * 100


def test_pairs_count_in_the_directions_that_chose_them():
    chosen = Candidates(np.array([[True, False]]), np.array([[False], [True]]))
    scores = reranked(np.array([[2.0, 3.0]]), chosen)
    assert scores.of_texts.tolist() == [[2.0, -np.inf]]
    assert scores.of_media.tolist() == [[-np.inf], [3.0]]


def test_media_of_one_head_are_not_scored_by_another(tokens):
    module = build(dataclasses.replace(STAGE2["visual"], match_heads=()))
    media, texts = tokens
    variables = noise_like(abstract_variables(module), 0)
    with pytest.raises(ValueError, match="matching head"):
        next(match_scores(module, variables, "video", media.__getitem__, texts, {0: np.array([0])}))
