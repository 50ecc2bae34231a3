"""Results of retrieval as text, a list and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.evaluation.figures.contact_sheet import Found, Query, contact_sheet, thumbnail
from internvideo_jax.evaluation.figures.files import save_figure
from internvideo_jax.evaluation.result_card import metrics_table
from internvideo_jax.evaluation.retrieval.evaluator import Retrieved
from internvideo_jax.evaluation.retrieval.metrics import best_ranks
from internvideo_jax.files import atomic_file

# Results of a text in the list, queries and results in the picture.
NUM_LISTED, NUM_QUERIES, NUM_FOUND = 10, 8, 5


def write_report(
    directory: Path,
    retrieved: Retrieved,
    clips: Sequence[ClipRecord],
    metrics: Mapping[str, float],
) -> str:
    """Writes texts.jsonl and contact_sheet.png.

    The best clips of both are those of the last kind of scores: of reranking if there was any, else
    of dual softmax. The list has at most as many as were candidates, the picture goes on with the
    next by similarity.

    Args:
      directory: where to.
      retrieved: what was compared.
      clips: in the order of the scores.
      metrics: of it.

    Returns:
      The metrics as a table to read.
    """
    plain = retrieved.scores["similarity"].of_media
    kind = list(retrieved.scores)[-1]
    scores, relevant = retrieved.scores[kind].of_media, retrieved.relevant.T
    ranks = {name: best_ranks(s.of_media, relevant, plain) for name, s in retrieved.scores.items()}
    best = [
        np.lexsort((-plain[text], -scores[text]))[:NUM_LISTED].tolist()
        for text in range(len(retrieved.texts))
    ]
    with atomic_file(directory / "texts.jsonl") as path, path.open("w", encoding="utf-8") as file:
        for text, caption in enumerate(retrieved.texts):
            line = {
                "text": caption,
                "clips": [clips[v].id for v in np.flatnonzero(relevant[text]).tolist()],
                "ranks": {name: int(own[text]) for name, own in ranks.items()},
                "best": [
                    [clips[v].id, round(float(scores[text, v]), 6)]
                    for v in best[text]
                    if np.isfinite(scores[text, v])
                ],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    count = min(NUM_QUERIES, len(best))
    queries = []
    for text in np.linspace(0, len(best) - 1, count).astype(int).tolist():
        found = [
            Found(clips[v].id, thumbnail(clips[v]), bool(relevant[text, v]))
            for v in best[text][:NUM_FOUND]
        ]
        queries.append(Query(retrieved.texts[text], int(ranks[kind][text]), found))
    title = f"{count} of {len(best)} texts, and the best of {len(clips)} clips by {kind}"
    save_figure(contact_sheet(queries, title), directory / "contact_sheet.png")
    return metrics_table(metrics)
