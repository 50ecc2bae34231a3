"""Retrieval with stage 2: metrics, similarities and reranked scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from comparison import assert_tensor_close, assert_tensors_close
from golden import Golden, checker

from internvideo_jax.evaluation.retrieval import Scores, relevance, retrieval_metrics


def pairs(texts_of: Mapping[str, Any], *, media_of_texts: bool = False) -> np.ndarray:
    """Media and texts that belong together, by upstream's lists for either side."""
    found = []
    for query, own in texts_of.items():
        numbers = own if isinstance(own, list) else [own]
        found += [(int(query), int(number)) for number in numbers]
    return np.array(found)[:, :: -1 if media_of_texts else 1]


def check_metrics(golden: Golden, scores: Scores, relevant: np.ndarray, prefix: str) -> None:
    """Compares with metrics that are rounded to two decimals."""
    # The last of equal scores comes first there.
    then = Scores(*(np.arange(x.shape[1]) for x in (scores.of_texts, scores.of_media)))
    ours = retrieval_metrics(scores, relevant, then=then)
    expected = golden.group(prefix)
    assert_tensors_close({name: np.float32(round(ours[name], 2)) for name in expected}, expected)


@checker("internvideo2_stage2.eval_itm_metrics")
def check_retrieval_metrics(golden: Golden) -> None:
    scores = Scores(golden["in/i2t"], golden["in/t2i"])
    texts_of, media_of = (dict(golden.config[name]) for name in ("img2txt", "txt2img"))
    own = pairs(texts_of)
    relevant = relevance(own, *scores.of_texts.shape)
    np.testing.assert_array_equal(
        relevant, relevance(pairs(media_of, media_of_texts=True), *scores.of_texts.shape)
    )
    check_metrics(golden, scores, relevant, "out/metrics/")


@checker("internvideo2_stage2.eval_act_rec_prompts")
def check_prompts(golden: Golden) -> None:
    c = golden.config
    scores = Scores(golden["in/i2t"], golden["in/t2i"].T)
    # Texts are the prompts of one class after another.
    i2t, t2i = (x.reshape(len(x), -1, c["num_prompts"]).mean(axis=2) for x in (
        scores.of_texts, scores.of_media
    ))  # fmt: skip
    merged = Scores(i2t, t2i.T)
    assert_tensor_close("i2t_mean", merged.of_texts, golden["out/i2t_mean"])
    assert_tensor_close("t2i_mean", merged.of_media, golden["out/t2i_mean"])
    classes = dict(enumerate(c["img2txt"]))
    relevant = relevance(pairs({str(v): n for v, n in classes.items()}), *i2t.shape)
    listed = pairs(dict(c["txt2img"]), media_of_texts=True)
    np.testing.assert_array_equal(relevant, relevance(listed, *i2t.shape))
    check_metrics(golden, merged, relevant, "out/metrics/")
