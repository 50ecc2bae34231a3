"""What a model says of clips, and of the windows of long videos: which class they show."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from internvideo_jax.class_names import check_order, read_class_names
from internvideo_jax.config import check_counts
from internvideo_jax.data import pipeline
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.video import VideoError
from internvideo_jax.data.sources.given import Clip, GivenSource
from internvideo_jax.data.sources.source import reason
from internvideo_jax.data.windows import Windows, window_batches
from internvideo_jax.evaluation import runner
from internvideo_jax.evaluation.classification import ClassificationEvaluator, merge_views
from internvideo_jax.evaluation.features import NOT_FINITE, FailedClip, FailedWindow
from internvideo_jax.models import VideoClassifier
from internvideo_jax.models.dual_encoder import DualEncoder
from internvideo_jax.models.video_vit import check_num_frames

if TYPE_CHECKING:
    from internvideo_jax.saved_model import SavedModel


class Score(NamedTuple):
    """A class and its probability, from 0 to 1."""

    name: str
    probability: float


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a classifier says of a clip or a window.

    Attributes:
      source: path of the file, or what its frames are called ("clip 3").
      probabilities: of the classes, float32 `[C]`, the mean over the views.
      start: seconds after the file's start where the window begins; None of a whole clip.
      end: likewise, where it ends.
    """

    source: str
    probabilities: np.ndarray
    start: float | None = None
    end: float | None = None

    def best(self, names: Sequence[str], top: int) -> list[Score]:
        """The `top` best classes, in their `order`, with their `names`."""
        return [Score(names[i], float(self.probabilities[i])) for i in self.order(top)]

    def order(self, top: int) -> list[int]:
        """Numbers of the `top` best classes, the best first; of equal ones, the first."""
        numbers: list[int] = np.argsort(-self.probabilities, kind="stable")[:top].tolist()
        return numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """What says which class clips show.

    Attributes:
      forward: what becomes of each view.
      probabilities: what becomes of that of all views of a clip, `[S, ...]`: those of the classes,
        float32 `[C]`.
      names: of the classes.
    """

    forward: runner.Forward
    probabilities: Callable[[np.ndarray], np.ndarray]
    names: tuple[str, ...]


def view_config(
    model: "SavedModel", *, num_frames: int | None = None, segments: int = 1, crops: int = 1
) -> DataConfig:
    """How clips are shown to a model: the frames by the rule of its evaluation.

    Args:
      model: whose frames and image size are meant.
      num_frames: frames of a view, if not as many as the model was made for.
      segments: choices of frames.
      crops: squares along the longer side.

    Raises:
      ValueError: the model takes no videos, its tubelets do not divide the frames, or so many or so
        few frames, segments or crops are impossible.
    """
    video = model.preprocessing.require_video()
    check_counts(num_frames=num_frames, segments=segments, crops=crops)
    check_num_frames(model.module, num_frames or video.num_frames)
    return DataConfig(
        sampling="intervals" if isinstance(model.module, DualEncoder) else "sparse",
        num_frames=num_frames or video.num_frames,
        image_size=video.image_size,
        resize=video.resize,
        segments=segments,
        crops=crops,
    )


def class_names(model: "SavedModel", path: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Names of a classifier's classes, or their numbers where nobody has named them.

    Args:
      model: a classifier.
      path: a file of names to show in place of the model's own, in the same order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the model is no classifier, or the file is not of its classes in its order
        (`class_names.read_class_names`, `class_names.check_order`).
    """
    _evaluator(model)
    if path is not None:
        names = read_class_names(path, model.config.num_classes)
        check_order(names, model.classes or names, str(path))
        return names
    return model.classes or tuple(map(str, range(model.config.num_classes)))


def model_classifier(model: "SavedModel", path: str | os.PathLike[str] | None = None) -> Classifier:
    """A classifier as it is; arguments and errors are those of `class_names`."""

    def probabilities(logits: np.ndarray) -> np.ndarray:
        return merge_views(np.zeros(len(logits)), logits)[0]

    return Classifier(_evaluator(model), probabilities, class_names(model, path))


def predict_clips(
    clips: Iterable[Clip],
    model: "SavedModel",
    views: DataConfig,
    *,
    batch_size: int = 8,
    num_threads: int | None = None,
    classifier: Classifier | None = None,
) -> Iterator[Prediction | FailedClip]:
    """Classifies clips, which are decoded ahead in threads, a bounded number at a time.

    Args:
      clips: paths of video files, or frames uint8 `[T, H, W, 3]`.
      model: a classifier, or what `classifier` was made of.
      views: how each is shown (`view_config`).
      batch_size: views that are held together at most.
      num_threads: decoding threads; by default one per CPU core.
      classifier: what classifies; None is the model itself.

    Returns:
      A prediction or a failure of each clip, in their order.

    Raises:
      ValueError: the model is no classifier, or frames in memory are of another layout, dtype or
        range.
    """
    classifier = classifier or model_classifier(model)
    source = GivenSource(clips)

    def results() -> Iterator[Prediction | FailedClip]:
        if not len(source):
            return
        batches = pipeline.eval_batches(
            views, ("video",), batch_size=batch_size, source=source, num_threads=num_threads
        )
        for row, outcome in _outcomes(classifier, model, batches, views):
            name = source.records[int(row["index"])].path
            if isinstance(outcome, str):
                yield FailedClip(name, outcome)
            else:
                yield Prediction(name, outcome)

    return results()


def predict_windows(
    path: str | os.PathLike[str],
    model: "SavedModel",
    views: DataConfig,
    windows: Windows,
    *,
    batch_size: int = 8,
    num_threads: int | None = None,
    classifier: Classifier | None = None,
) -> Iterator[Prediction | FailedClip]:
    """Classifies all windows of a video, which are decoded ahead in threads, some at a time.

    Args:
      path: the video file.
      model: a classifier, or what `classifier` was made of.
      views: how each window is shown (`view_config`).
      windows: where the video is cut.
      batch_size: views that are held together at most.
      num_threads: decoding threads; by default one per CPU core.
      classifier: what classifies; None is the model itself.

    Returns:
      A prediction or a failure (`FailedWindow`) of each window, from the first to the last; of a
      file that cannot be read, its one failure.

    Raises:
      ValueError: the model is no classifier; from `next`, more windows than frames.
    """
    classifier = classifier or model_classifier(model)
    name = os.fspath(path)

    def results() -> Iterator[Prediction | FailedClip]:
        batches = window_batches(
            name, views, windows, batch_size=batch_size, num_threads=num_threads
        )
        try:
            for row, outcome in _outcomes(classifier, model, batches, views):
                start, end = float(row["start"]), float(row["end"])
                if isinstance(outcome, str):
                    yield FailedWindow(name, outcome, start, end)
                else:
                    yield Prediction(name, outcome, start, end)
        except (VideoError, OSError) as error:
            yield FailedClip(name, reason(error))

    return results()


def _evaluator(model: "SavedModel") -> ClassificationEvaluator:
    if isinstance(model.module, DualEncoder):
        raise ValueError(
            f"expected a model with classes, found {type(model.module).__name__}, which compares"
            " clips with texts: name the classes (`model.predict(clips, classes=[...])`,"
            " `internvideo-jax predict --classes=FILE`)"
        )
    if not isinstance(model.module, VideoClassifier):
        raise ValueError(
            f"expected a model with classes, found {type(model.module).__name__}, which has none:"
            " take its features (`internvideo-jax extract`, `model.encode`), or train a classifier"
            " from it with configs/stage1/finetune.py or probe.py"
        )
    return ClassificationEvaluator(model.module, model.preprocessing.require_video())


def _outcomes(
    classifier: Classifier,
    model: "SavedModel",
    batches: Iterable[runner.HostBatch],
    views: DataConfig,
) -> Iterator[tuple[dict[str, np.generic], np.ndarray | str]]:
    """For each clip, whose views follow each other: its last row without the pixels, and its
    probabilities `[C]` or why there are none."""
    count = views.segments * views.crops
    outputs: list[np.ndarray] = []
    for batch, output in runner.run(classifier.forward, model.variables, batches):
        for row in range(len(batch["index"])):
            outputs.append(output[row])
            if len(outputs) < count:
                continue
            columns = {name: x[row] for name, x in batch.items() if name != "video"}
            if not columns["valid"]:
                yield columns, str(columns["error"])
            elif not np.isfinite(outputs).all():
                yield columns, NOT_FINITE
            else:
                yield columns, classifier.probabilities(np.stack(outputs))
            outputs = []
