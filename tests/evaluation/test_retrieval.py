"""Metrics of retrieval, by hand."""

import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.evaluation.retrieval.evaluator import retrieval_evaluator
from internvideo_jax.evaluation.retrieval.metrics import (
    Scores,
    best_ranks,
    cosine_similarity,
    dual_softmax,
    rank_metrics,
    relevance,
    retrieval_metrics,
)
from internvideo_jax.evaluation.retrieval.options import RetrievalOptions
from tests.small_models import save_clip


def test_the_best_of_several_relevant_candidates_counts():
    scores = np.array([[0.9, 0.1, 0.5, 0.3], [0.2, 0.4, 0.1, 0.3]])
    relevant = np.array([[0, 1, 1, 0], [0, 0, 1, 0]], bool)
    assert best_ranks(scores, relevant).tolist() == [2, 4]


def test_queries_without_candidates_of_their_own_are_no_queries():
    scores = np.array([[0.9, 0.1], [0.2, 0.4]])
    assert best_ranks(scores, np.array([[0, 0], [0, 1]], bool)).tolist() == [1]
    with pytest.raises(ValueError, match="at least one query"):
        rank_metrics(best_ranks(scores, np.zeros((2, 2), bool)))


def test_equal_scores_are_ranked_by_a_second_score_and_then_by_number():
    scores = np.zeros((1, 4))
    own = np.array([[0, 0, 1, 0]], bool)
    assert best_ranks(scores, own).tolist() == [3]
    assert best_ranks(scores, own, np.array([0.0, 1, 0, 1])).tolist() == [4]
    assert best_ranks(scores, own, np.array([[0.0, 0, 2, 1]])).tolist() == [1]
    # What is ruled out comes after all others, in the second order.
    ruled_out = np.array([[-np.inf, 3.0, -np.inf, -np.inf]])
    assert best_ranks(ruled_out, own, np.array([[0.1, 0.2, 0.5, 0.9]])).tolist() == [3]


def test_ranks_become_recalls_in_percent_and_middle_ranks():
    metrics = rank_metrics(np.array([1, 1, 4, 6, 11, 12, 40, 5]))
    assert metrics == {
        "r1": 25.0,
        "r5": 50.0,
        "r10": 62.5,
        "r_mean": 45.8333333333333333,
        "median_rank": 5.5,
        "mean_rank": 10.0,
    }


def test_both_directions_with_several_captions_of_a_video_and_several_videos_of_a_caption():
    relevant = relevance(np.array([[0, 0], [0, 1], [1, 2], [2, 2]]), 3, 3)
    similarity = np.array([[0.1, 0.9, 0.2], [0.8, 0.3, 0.1], [0.7, 0.4, 0.6]])
    metrics = retrieval_metrics(Scores.symmetric(similarity), relevant)
    # Texts: the last media for the first; the first for the second; video 2 for the third.
    assert [metrics[f"t2v_{name}"] for name in ("r1", "r5", "mean_rank")] == [
        pytest.approx(200 / 3),
        100,
        pytest.approx(5 / 3),
    ]
    assert [metrics[f"v2t_{name}"] for name in ("r1", "median_rank")] == [
        pytest.approx(100 / 3),
        2,
    ]
    both = (metrics["t2v_r_mean"] + metrics["v2t_r_mean"]) / 2
    assert metrics["r_mean"] == pytest.approx(both)
    assert {name[:3] for name in retrieval_metrics(
        Scores.symmetric(similarity), relevant, "audio"
    )} == {"t2a", "a2t", "r_m"}  # fmt: skip


def test_dual_softmax_prefers_candidates_that_no_other_query_wants():
    # The first candidate is everybody's favourite; the second query has another one of its own.
    of_texts = np.array([[0.9, 0.1], [0.5, 0.45]], np.float32)
    weighted = dual_softmax(Scores.symmetric(20 * of_texts))
    assert of_texts.argmax(axis=1).tolist() == [0, 0]
    assert weighted.of_texts.argmax(axis=1).tolist() == [0, 1]
    assert weighted.of_texts.dtype == np.float32
    by_hand = 20 * 0.45 * np.exp(9) / (np.exp(9) + np.exp(2))
    assert weighted.of_texts[1, 1] == pytest.approx(by_hand, rel=1e-5)
    # Over the queries, which are the texts here.
    by_hand = 20 * 0.45 * np.exp(9) / (np.exp(9) + np.exp(10))
    assert weighted.of_media[1, 1] == pytest.approx(by_hand, rel=1e-5)


def test_similarities_are_cosines_in_float32():
    rng = np.random.default_rng(0)
    media, texts = rng.normal(size=(3, 5)), 100 * rng.normal(size=(4, 5))
    similarity = cosine_similarity(media.astype(np.float16), texts)
    assert (similarity.shape, similarity.dtype) == ((3, 4), np.float32)
    cosine = media[1] @ texts[2] / np.linalg.norm(media[1]) / np.linalg.norm(texts[2])
    assert similarity[1, 2] == pytest.approx(cosine, abs=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(bad):
    broken = np.array([[0.0, 1.0], [bad, 0.0]])
    with pytest.raises(ValueError, match="texts.*row 1"):
        cosine_similarity(np.ones((1, 2)), broken)
    if np.isnan(bad):
        with pytest.raises(ValueError, match="NaN"):
            best_ranks(broken, np.ones((2, 2), bool))


def test_a_clip_model_reads_texts_of_its_own_length(tmp_path):
    model = saved_model.load(save_clip(tmp_path))
    evaluator = retrieval_evaluator(model, RetrievalOptions(max_text_length=5))
    assert evaluator.tokenizer.max_length == model.preprocessing.text.max_length != 5
