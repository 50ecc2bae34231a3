"""Zero-shot classification: clips compared with texts that name the classes."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np

from internvideo_jax.data.tokenizers import Tokenizer
from internvideo_jax.evaluation import classification
from internvideo_jax.evaluation.classification import Predictions, classification_metrics
from internvideo_jax.evaluation.embeddings import dual_encoder, embed_texts, text_tokenizer
from internvideo_jax.evaluation.prediction import Classifier
from internvideo_jax.evaluation.prompt_ensemble import PromptEnsemble
from internvideo_jax.evaluation.retrieval.evaluator import merge_views
from internvideo_jax.evaluation.retrieval.metrics import normalized
from internvideo_jax.evaluation.runner import Evaluator, Forward, PyTree, Rows
from internvideo_jax.models.dual_encoder import DualEncoder, Embedded
from internvideo_jax.preprocessing import VideoPreprocessing, normalize

if TYPE_CHECKING:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.saved_model import SavedModel


@dataclasses.dataclass(frozen=True)
class ZeroShotEncoder(Forward):
    """Embeds clips, and the names that they are compared with.

    Attributes:
      module: a model that compares clips with texts.
      video: how it wants its clips.
      tokenizer: of its texts.
      ensemble: what makes texts of names.
    """

    module: DualEncoder
    video: VideoPreprocessing
    tokenizer: Tokenizer = dataclasses.field(compare=False)
    ensemble: PromptEnsemble = dataclasses.field(compare=False)

    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Embeddings `[B, D]` of uint8 views `[B, T, H, W, 3]`, not normalised."""
        clips = normalize(batch["video"], self.video)
        output: Any = self.module.apply(variables, clips, method="encode_video")
        return output.embedding

    def embed_names(self, variables: PyTree, names: Sequence[str]) -> np.ndarray:
        """Means of the normalised embeddings of the texts of each name, float32 `[C, D]`.

        They are not normalised again: the product with a clip's normalised embedding is then the
        mean of its cosines with the texts.

        Raises:
          ValueError: names without words, or embeddings that are not finite.

        Source: upstream's `InternVideo2/multi_modality/tasks_clip/retrieval_utils.py`, and `tasks`
        for stage 2.
        """
        ids, mask = self.tokenizer(self.ensemble.texts(names))
        texts = normalized(embed_texts(ids, mask, self.module, variables).embedding, "texts")
        return texts.reshape(len(names), -1, texts.shape[-1]).mean(axis=1)

    def logits(self, variables: PyTree, clips: np.ndarray, names: np.ndarray) -> np.ndarray:
        """What a softmax over names turns into probabilities, float32 `[N, C]`.

        Args:
          variables: of the model.
          clips: embeddings `[N, D]`.
          names: from `embed_names`, `[C, D]`.

        Raises:
          ValueError: embeddings are not finite.
        """
        scale = np.float32(_cosine_scale(variables, module=self.module))
        return scale * (normalized(clips, "clips") @ names.T)


@functools.partial(jax.jit, static_argnames="module")
def _cosine_scale(variables: PyTree, *, module: DualEncoder) -> Any:
    return module.apply(variables, method="cosine_scale")


@dataclasses.dataclass(frozen=True)
class ZeroShotEvaluator(Evaluator):
    """How well a model knows the labels of clips by the names of the classes alone.

    Attributes:
      encoder: of clips and names.
      classes: names of the classes, in the order of the labels' numbers.
    """

    task: ClassVar[str] = "zero-shot classification"
    merging: ClassVar[str] = "mean of the embeddings of the views"
    references: ClassVar[tuple[str, ...]] = ("label",)

    encoder: ZeroShotEncoder
    classes: tuple[str, ...]

    def with_model(self, model: "SavedModel") -> "ZeroShotEvaluator":
        return ZeroShotEvaluator(zero_shot_encoder(model, self.encoder.ensemble), self.classes)

    def forward(self, variables: PyTree, batch: Mapping[str, jax.Array]) -> Embedded:
        return Embedded(None, self.encoder.forward(variables, batch))

    def complete(self, rows: Rows, variables: PyTree) -> Rows:
        """The logits of each clip, float32 `[N, C]`, with its `index` and `label`."""
        views = rows.columns["index"]
        numbers, first = np.unique(views, return_index=True)
        names = self.encoder.embed_names(variables, self.classes)
        logits = self.encoder.logits(variables, merge_views(views, rows.output.embedding), names)
        columns = {"index": numbers, "label": rows.columns["label"][first]}
        return dataclasses.replace(rows, columns=columns, output=logits)

    def metrics(self, rows: Rows) -> dict[str, float]:
        """Those of `classification_metrics`, and "top1_top5_mean", as upstream reports it."""
        predictions = Predictions.of(rows)
        values = classification_metrics(predictions.probabilities, predictions.labels)
        if "top5" not in values:
            return values
        return values | {"top1_top5_mean": (values["top1"] + values["top5"]) / 2}

    def report(
        self, rows: Rows, clips: "Sequence[ClipRecord]", names: Sequence[str], directory: Path
    ) -> str:
        """That of `classification_report.write_report`."""
        from internvideo_jax.evaluation.classification_report import write_report

        return write_report(directory, rows, clips, names, self.metrics(rows))


def zero_shot_encoder(model: "SavedModel", ensemble: PromptEnsemble) -> ZeroShotEncoder:
    """What embeds clips and names with a saved model.

    Raises:
      ValueError: it compares no clips with texts, or has no tokenizer.
    """
    module, tokenizer = dual_encoder(model), text_tokenizer(model)
    return ZeroShotEncoder(module, model.preprocessing.require_video(), tokenizer, ensemble)


def zero_shot_classifier(
    model: "SavedModel", names: Sequence[str], ensemble: PromptEnsemble
) -> Classifier:
    """What `prediction.predict_clips` and `predict_windows` classify by names alone with.

    Args:
      model: one that compares clips with texts.
      names: of the classes.
      ensemble: what makes texts of them.

    Raises:
      ValueError: as of `zero_shot_encoder` and `ZeroShotEncoder.embed_names`.
    """
    encoder = zero_shot_encoder(model, ensemble)
    embedded = encoder.embed_names(model.variables, names)

    def probabilities(views: np.ndarray) -> np.ndarray:
        clip = views.mean(axis=0, keepdims=True)
        logits = encoder.logits(model.variables, clip, embedded)
        return classification.merge_views(np.zeros(1), logits)[0]

    return Classifier(encoder, probabilities, tuple(names))
