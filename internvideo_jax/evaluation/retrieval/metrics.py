"""Metrics of retrieval: recalls and ranks as pure functions of scores.

Texts look for media (videos, sounds, or videos with their sound), and media for texts. Any number
of texts may belong to a medium and the other way round: what counts is the best-ranked of them.
"""

import dataclasses

import numpy as np

from internvideo_jax.models.dual_encoder import Medium

# How many of the best candidates the recalls look at.
RECALLS = (1, 5, 10)
# Directions, as metrics are called: texts look for media, media look for texts.
DIRECTIONS: dict[Medium, tuple[str, str]] = {
    "video": ("t2v", "v2t"),
    "audio": ("t2a", "a2t"),
    "audio_video": ("t2av", "av2t"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """How well media and texts fit, with each side as the queries in turn.

    Attributes:
      of_texts: for each medium, scores of all texts, float32 `[V, T]`; -inf of those ruled out.
      of_media: for each text, scores of all media, float32 `[T, V]`; likewise.
    """

    of_texts: np.ndarray
    of_media: np.ndarray

    @classmethod
    def symmetric(cls, scores: np.ndarray) -> "Scores":
        """The same scores `[V, T]` in both directions."""
        return cls(scores, scores.T)


def cosine_similarity(media: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosines of embeddings `[V, C]` and `[T, C]`, computed in float32: `[V, T]`.

    Raises:
      ValueError: embeddings are not finite.
    """
    return normalized(media, "media") @ normalized(texts, "texts").T


def normalized(embeddings: np.ndarray, name: str) -> np.ndarray:
    """Embeddings `[..., C]` as float32 of length 1; those that are zero stay so.

    Args:
      embeddings: of any dtype.
      name: what errors call them.

    Raises:
      ValueError: they are not finite.
    """
    wide = np.asarray(embeddings, np.float32)
    bad = ~np.isfinite(wide).all(axis=-1)
    if bad.any():
        raise ValueError(
            f"expected finite embeddings of {name}, found NaN or infinities in row"
            f" {int(bad.argmax())}; compute in float32, or check the model's weights"
        )
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)


def dual_softmax(scores: Scores) -> Scores:
    """Scores weighted by how much a candidate prefers the query to all other queries.

    Each is multiplied by the softmax of its candidate's scores over the queries. It looks at all
    queries together, so that its results are to be reported apart from those of plain scores.

    Source: upstream's `tasks/retrieval_utils.py` (the dual softmax loss of CAMoE, arXiv 2109.04290,
    at temperature 1).
    """
    return Scores(*(_dual_softmax(x) for x in (scores.of_texts, scores.of_media)))


def _dual_softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=0))
    return scores * (exponentials / exponentials.sum(axis=0))


def relevance(pairs: np.ndarray, num_media: int, num_texts: int) -> np.ndarray:
    """Bool `[V, T]`: whether a text belongs to a medium.

    Args:
      pairs: numbers of media and texts that belong together, int `[P, 2]`.
      num_media: V.
      num_texts: T.
    """
    relevant = np.zeros((num_media, num_texts), bool)
    relevant[pairs[:, 0], pairs[:, 1]] = True
    return relevant


def best_ranks(
    scores: np.ndarray, relevant: np.ndarray, then: np.ndarray | None = None
) -> np.ndarray:
    """Rank of the best of each query's own candidates.

    Of equal scores, the one with the higher `then` comes first, and of those still equal the one
    with the lower number.

    Args:
      scores: of candidates, `[Q, C]`.
      relevant: bool `[Q, C]`, the query's own candidates.
      then: what decides between equal scores, `[Q, C]` or `[C]`.

    Returns:
      int64 `[R]`, from 1, of the queries that have candidates of their own.

    Raises:
      ValueError: NaN among the scores.
    """
    if np.isnan(scores).any():
        raise ValueError("expected scores that are numbers, found NaN; compute in float32")
    queries = np.flatnonzero(relevant.any(axis=1))
    ranks = np.empty(len(queries), np.int64)
    # Query by query: all orders at once would be as large as several matrices of scores.
    for row, query in enumerate(queries):
        keys = [-scores[query]]
        if then is not None:
            keys.insert(0, -np.broadcast_to(then, scores.shape)[query])
        ranks[row] = relevant[query][np.lexsort(keys)].argmax() + 1
    return ranks


def rank_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Recalls in percent, and the median and the mean rank.

    Args:
      ranks: from 1, int `[Q]`.

    Returns:
      "r1", "r5", "r10", their mean "r_mean", "median_rank" and "mean_rank".

    Raises:
      ValueError: no queries.
    """
    if not len(ranks):
        raise ValueError("expected at least one query with candidates of its own, found none")
    recalls = {f"r{k}": float(100 * (ranks <= k).mean()) for k in RECALLS}
    return {
        **recalls,
        "r_mean": float(np.mean(list(recalls.values()))),
        "median_rank": float(np.median(ranks)),
        "mean_rank": float(ranks.mean()),
    }


def retrieval_metrics(
    scores: Scores, relevant: np.ndarray, medium: Medium = "video", then: Scores | None = None
) -> dict[str, float]:
    """Those of `rank_metrics` in both directions ("t2v_r1", "v2t_r1", ...), and "r_mean" of both.

    Args:
      scores: of media and texts.
      relevant: bool `[V, T]`, whether a text belongs to a medium.
      medium: names the directions.
      then: what decides between equal scores.

    Raises:
      ValueError: NaN among the scores, or nothing belongs to anything.
    """
    of_media, of_texts = DIRECTIONS[medium]
    found = {
        of_media: best_ranks(scores.of_media, relevant.T, then.of_media if then else None),
        of_texts: best_ranks(scores.of_texts, relevant, then.of_texts if then else None),
    }
    metrics = {
        f"{direction}_{name}": value
        for direction, ranks in found.items()
        for name, value in rank_metrics(ranks).items()
    }
    both = [metrics[f"{direction}_r_mean"] for direction in found]
    return {**metrics, "r_mean": float(np.mean(both))}
