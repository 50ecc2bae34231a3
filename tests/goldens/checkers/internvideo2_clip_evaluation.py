"""Zero-shot evaluation of InternVideo2-CLIP: retrieval, classes by prompts, multiple choice."""

from collections.abc import Mapping

import numpy as np
from comparison import assert_tensor_close
from golden import Golden, checker

from internvideo_jax.evaluation.classification import average_precision, top_k_accuracy
from internvideo_jax.evaluation.retrieval.metrics import (
    Scores,
    cosine_similarity,
    dual_softmax,
    normalized,
    relevance,
    retrieval_metrics,
)

# Upstream calls the retrieval of texts "txt", that of media "img".
_DIRECTIONS = {"txt": "v2t", "img": "t2v"}
# What the released models divide cosines by.
_TEMPERATURE = 0.01


def check_rounded(scores: Scores, relevant: np.ndarray, expected: Mapping[str, float]) -> None:
    """Compares with metrics that are rounded to two decimals."""
    ours = retrieval_metrics(scores, relevant)
    for name, value in expected.items():
        direction, _, metric = name.partition("_")
        own = name if direction == "r" else f"{_DIRECTIONS[direction]}_{metric}"
        assert round(ours[own], 2) == value, name


@checker("internvideo2_clip.metrics")
def check_metrics(golden: Golden) -> None:
    c = golden.config
    similarity = Scores.symmetric(cosine_similarity(golden["in/ret/vision"], golden["in/ret/text"]))
    weighted = dual_softmax(similarity)
    assert_tensor_close("sim", similarity.of_texts, golden["out/ret/sim"])
    assert_tensor_close("dsl_i2t", weighted.of_texts, golden["out/ret/dsl_i2t"])
    assert_tensor_close("dsl_t2i", weighted.of_media, golden["out/ret/dsl_t2i"])
    owners = golden["in/ret/text_owner"]
    own = np.stack([owners, np.arange(len(owners))], axis=1)
    relevant = relevance(own, *similarity.of_texts.shape)
    check_rounded(similarity, relevant, c["retrieval"])
    check_rounded(weighted, relevant, c["retrieval_dsl"])

    # A class is the mean of its normalised texts, which stand together.
    texts = normalized(golden["in/act/text"], "texts")
    classes = texts.reshape(-1, c["n_prompts"], texts.shape[1]).mean(axis=1)
    clips = normalized(golden["in/act/vision"], "clips")
    similarity = Scores.symmetric(clips @ classes.T)
    weighted = dual_softmax(similarity)
    assert_tensor_close("act/sim", similarity.of_texts, golden["out/act/sim"])
    assert_tensor_close("act/dsl_i2t", weighted.of_texts, golden["out/act/dsl_i2t"])
    labels = golden["in/act/label"]
    relevant = np.eye(len(classes), dtype=bool)[labels]
    check_rounded(similarity, relevant, c["action"])
    check_rounded(weighted, relevant, c["action_dsl"])

    clips = normalized(golden["in/mc/vision"], "clips")
    options = golden["in/mc/options"]
    own = zip(clips, options, strict=True)
    cosines = np.stack([cosine_similarity(clip[None], texts)[0] for clip, texts in own])
    scores = softmax(cosines / _TEMPERATURE)
    assert_tensor_close("mc/score", scores, golden["out/mc/score"])
    assert round(top_k_accuracy(scores, golden["in/mc/answer"], 1), 2) == c["mc_acc"]

    # There, a class that no clip has counts as 0, and of equal scores (some have underflown to 0)
    # the first clip comes first.
    ranks = np.argsort(np.argsort(-scores, axis=0, kind="stable"), axis=0)
    precisions = np.nan_to_num(average_precision(-ranks, golden["in/map/target"]))
    assert_tensor_close("map/ap", precisions.astype(np.float32), golden["out/map/ap"])
    percent = np.float32(100 * precisions.mean())
    assert_tensor_close("map/map_percent", percent, golden["out/map/map_percent"])
    assert round(float(percent), 2) == c["map"]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
