"""Multiple choice: each clip compared with candidate texts of its own."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import jax
import numpy as np

from internvideo_jax.evaluation.classification import (
    mean_average_precision,
    merge_views,
    top_k_accuracy,
)
from internvideo_jax.evaluation.result_card import metrics_table
from internvideo_jax.evaluation.retrieval.evaluator import merge_views as mean_of_views
from internvideo_jax.evaluation.runner import Evaluator, PyTree, Rows
from internvideo_jax.evaluation.zero_shot import ZeroShotEncoder, zero_shot_encoder
from internvideo_jax.files import atomic_file
from internvideo_jax.models.dual_encoder import Embedded

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.saved_model import SavedModel

# Candidates of a clip in the list of results.
_NUM_LISTED = 5


@dataclasses.dataclass(frozen=True)
class MultipleChoiceEvaluator(Evaluator):
    """How often a model chooses the right one of a clip's candidates, or finds all right ones.

    The captions of a clip are its candidates, its label the number of the right one; or a multi-hot
    row where several may be right.

    Attributes:
      encoder: of clips and candidates.
    """

    task: ClassVar[str] = "multiple choice"
    merging: ClassVar[str] = "mean of the embeddings of the views"
    references: ClassVar[tuple[str, ...]] = ("captions", "label")

    encoder: ZeroShotEncoder

    def with_model(self, model: "SavedModel") -> "MultipleChoiceEvaluator":
        return MultipleChoiceEvaluator(zero_shot_encoder(model, self.encoder.ensemble))

    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> Embedded:
        return Embedded(None, self.encoder.forward(variables, batch))

    def complete(self, rows: Rows, variables: PyTree) -> Rows:
        """The probabilities of each clip's candidates, float32 `[N, K]`, 0 beyond the last.

        A candidate of several clips is encoded once.
        """
        views = rows.columns["index"]
        numbers, first = np.unique(views, return_index=True)
        columns = {name: column[first] for name, column in rows.columns.items()}
        embedding = mean_of_views(views, rows.output.embedding)
        candidates: list[tuple[str, ...]] = columns["captions"].tolist()
        place_of: dict[str, int] = {}
        for own in candidates:
            for name in own:
                place_of.setdefault(name, len(place_of))
        names = self.encoder.embed_names(variables, list(place_of))
        scores = np.zeros((len(numbers), max(map(len, candidates))), np.float32)
        for clip, own in enumerate(candidates):
            these = names[[place_of[name] for name in own]]
            logits = self.encoder.logits(variables, embedding[clip : clip + 1], these)
            scores[clip, : len(own)] = merge_views(np.zeros(1), logits)[0]
        return dataclasses.replace(rows, columns=columns, output=scores)

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Percentages: "accuracy", or where several candidates may be right, "mAP".

        Upstream compares probabilities over a clip's candidates across clips, and so does the mAP.

        Source: upstream's `tasks_clip/retrieval_mc.py` and `retrieval_mc2.py`.
        """
        labels = rows.columns["label"]
        if labels.ndim == 2:
            return {"mAP": mean_average_precision(rows.output, labels)}
        return {"accuracy": top_k_accuracy(rows.output, labels, 1)}

    def report(
        self, rows: Rows, clips: "Sequence[ClipRecord]", names: Sequence[str], directory: Path
    ) -> str:
        """Writes predictions.jsonl; returns the metrics as a table to read."""
        del names
        with (
            atomic_file(directory / "predictions.jsonl") as path,
            path.open("w", encoding="utf-8") as file,
        ):
            for clip, scores in zip(clips, rows.output, strict=True):
                own = scores[: len(clip.captions)]
                best = np.argsort(-own, kind="stable")[:_NUM_LISTED].tolist()
                line = {
                    "id": clip.id,
                    "answer": clip.label,
                    "best": [[n, clip.captions[n], round(float(own[n]), 6)] for n in best],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return metrics_table(self.metrics(rows))
