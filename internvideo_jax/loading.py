"""Models by name or path, ready to look at videos: `load` and the `Model` that it gives."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from internvideo_jax import saved_model
from internvideo_jax.class_names import given_class_names
from internvideo_jax.config import check_counts
from internvideo_jax.convert.library import model_directory
from internvideo_jax.data import pipeline
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.sources.given import GivenSource, is_path, split_clips
from internvideo_jax.environment import default_dtype
from internvideo_jax.evaluation import prediction
from internvideo_jax.evaluation.comparison import ClipTextModel
from internvideo_jax.evaluation.features import (
    FailedClip,
    Kind,
    extract_features,
    extract_sound_features,
)
from internvideo_jax.evaluation.prediction import Score
from internvideo_jax.evaluation.progress import watched
from internvideo_jax.evaluation.prompt_ensemble import PLACE, PromptEnsemble, read_templates
from internvideo_jax.evaluation.zero_shot import zero_shot_classifier
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.preprocessing import AudioPreprocessing, normalize

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Model(ClipTextModel):
    """A saved model that takes files, frames and texts.

    Classifiers have `predict`, encoders `encode`; models that compare clips with texts have
    `encode_video`, `encode_text` and `similarity`, `predict` of classes that are named, and those
    of stage 2 also `rerank`.

    A clip is the path of a video, an image or a folder of images, or the frames of one as they are
    decoded: uint8 `[T, H, W, 3]`, RGB, of any size and number, of which the model's are sampled
    evenly, resized and cropped. Methods take one clip, or a list of clips; an array
    `[B, T, H, W, 3]` is B clips. Towers of sound take paths of files with sound. Clips are decoded
    ahead in threads, and lists that take long show their progress.

    `predict` and `encode` give one result of one clip, and a list of a list, in which a clip that
    cannot be read has a `FailedClip` in its place; one alone raises. `encode_video` and `rerank`
    give arrays, and raise `FailedClips` with the rows of all others.
    """

    def preprocess(self, clips: Any, *, num_frames: int | None = None) -> np.ndarray:
        """What the module takes: `model.module.apply(model.variables, model.preprocess(clip))`.

        Args:
          clips: one clip or a list of them.
          num_frames: frames per clip, if not as many as the model was made for.

        Returns:
          float32, normalised: clips `[B, T, S, S, 3]`, channels last, or filterbanks `[B, T, M]`;
          B is 1 for one clip.

        Raises:
          ValueError: no clips, one that cannot be read, frames of another layout, dtype or range,
            frames that the model's tubelets do not divide, or a model that takes neither videos nor
            sound.
        """
        given, _ = split_clips(clips)
        if not given:
            raise ValueError("expected at least one clip, found none")
        if (sound := self._sound()) is not None:
            source = GivenSource(_sounds(given))
            field, config = "audio", DataConfig(audio=sound)
        else:
            source = GivenSource(given)
            field, config = "video", prediction.view_config(self, num_frames=num_frames)
        batches = pipeline.eval_batches(config, (field,), batch_size=len(given), source=source)
        (batch,) = batches
        for row in np.flatnonzero(~batch["valid"]).tolist():
            raise ValueError(f"{source.records[row].path}: {batch['error'][row]}")
        if field == "audio":
            return batch[field]
        return normalize(batch[field], self.preprocessing.require_video())

    def predict(
        self,
        clips: Any,
        *,
        classes: Iterable[str] | None = None,
        prompts: str | Sequence[str] = PLACE,
        top: int = 5,
        num_frames: int | None = None,
        segments: int = 1,
        crops: int = 1,
        batch_size: int = 8,
    ) -> list[Score] | list[list[Score] | FailedClip]:
        """The best classes of each clip: a classifier's own, or any that are named.

        Args:
          clips: one clip or a list of them.
          classes: names to tell apart, of a model that compares clips with texts. Probabilities are
            a softmax of how well they fit. None: the model has classes of its own.
          prompts: texts in which these names stand, whose similarities are averaged: templates such
            as "a video of {}", one or several, or what else `read_templates` of
            `evaluation.prompt_ensemble` takes ("k400": the published ones). By default the names
            stand alone.
          top: how many classes; more than there are count as all.
          num_frames: frames per view, if not as many as the model was made for.
          segments: choices of frames per clip; the probabilities of all views are averaged, or,
            where classes are named, the embeddings.
          crops: squares along the longer side, likewise.
          batch_size: views that are held together at most.

        Returns:
          `(name, probability)` of the best classes, the best first; numbers of classes that nobody
          has named stand for their names. For a list, a list of these.

        Raises:
          ValueError: the model has no classes and none are named, or they are named of one that
            compares no clips with texts; a name is empty or there twice, or no prompts; an argument
            that counts is not a whole number of at least 1, the model's tubelets do not divide the
            frames, frames are of another layout, dtype or range, or the one clip cannot be read.
          TypeError: classes that are no list of names.
        """
        check_counts(top=top, batch_size=batch_size)
        classifier = self._classifier(classes, prompts)
        views = prediction.view_config(self, num_frames=num_frames, segments=segments, crops=crops)
        given, is_one = split_clips(clips)
        results = prediction.predict_clips(
            given, self, views, batch_size=batch_size, classifier=classifier
        )
        best = [
            r if isinstance(r, FailedClip) else r.best(classifier.names, top)
            for r in watched(results, len(given), "clip")
        ]
        return _only(best) if is_one else best

    def encode(
        self,
        clips: Any,
        kind: Kind = "pooled",
        *,
        num_frames: int | None = None,
        batch_size: int = 8,
    ) -> np.ndarray | list[np.ndarray | FailedClip]:
        """Features of each clip.

        Args:
          clips: one clip or a list of them.
          kind: one vector per clip, or all tokens of the last layer.
          num_frames: frames per clip, if not as many as the model was made for.
          batch_size: clips that are held together at most.

        Returns:
          float32 `[P]`, or `[N, D]` of tokens, the class token first. For a list, a list of these.

        Raises:
          ValueError: the model takes neither videos nor sound, its tubelets do not divide the
            frames, an argument that counts is not a whole number of at least 1, frames are of
            another layout, dtype or range, or the one clip cannot be read.
        """
        if kind not in ("pooled", "tokens"):
            raise ValueError(f'expected kind="pooled" or "tokens", found {kind!r}')
        given, is_one = split_clips(clips)
        features: list[np.ndarray | FailedClip]
        if self._sound() is not None:
            paths = _sounds(given)
            sounds = extract_sound_features(paths, self, kind=kind, batch_size=batch_size)
            features = list(watched(sounds, len(given), "clip"))
        else:
            results = extract_features(
                given, self, num_frames=num_frames, kind=kind, batch_size=batch_size
            )
            features = [
                r if isinstance(r, FailedClip) else r.features
                for r in watched(results, len(given), "clip")
            ]
        return _only(features) if is_one else features

    def _classifier(
        self, classes: Iterable[str] | None, prompts: str | Sequence[str]
    ) -> prediction.Classifier:
        """What `predict` classifies with; arguments and errors are those of `predict`."""
        if classes is not None:
            names = given_class_names(classes)
            return zero_shot_classifier(self, names, PromptEnsemble(read_templates(prompts)))
        if prompts != PLACE:
            raise ValueError(
                "prompts: expected classes whose names they are for, found none; pass"
                " classes=[...], or leave them out"
            )
        return prediction.model_classifier(self)

    def _sound(self) -> AudioPreprocessing | None:
        """How a model wants its sound that takes sound, rather than videos.

        Raises:
          ValueError: it takes neither.
        """
        if self.preprocessing.video is None and self.preprocessing.audio is None:
            kind = "texts" if self.preprocessing.text is not None else "no clips"
            raise ValueError(
                f"expected a model that takes videos or sound, found one that takes {kind}; call"
                " model.module.apply(model.variables, ...) with what its docstring names"
            )
        return self.preprocessing.audio if self.preprocessing.video is None else None


def load(
    name: str | os.PathLike[str],
    *,
    dtype: Any = None,
    storage: Any = None,
    mesh: Mesh | None = None,
    check: bool = True,
) -> Model:
    """Loads a model by its folder or name.

    What is named is downloaded and converted once, into `$INTERNVIDEO_HOME/models`, and loaded from
    there without a network ever after; its sizes are printed before that begins.

    Args:
      name: a folder that `train` or `convert` wrote (`gs://` paths work too), the name of a
        release (`internvideo-jax convert --list`), a Hugging Face repository, "owner/name" or
        "owner/name:file", or "demo": the stage-2 model that `make demo` has trained.
      dtype: "float32", "bfloat16" or "float16": what the model computes in, and keeps its kernels
        in. None takes what suits the device: bfloat16 on TPUs and on GPUs of compute capability 8
        or more, float16 on older GPUs, float32 on CPUs, whatever was saved; `saved_model.load`
        keeps everything as saved. Norms and softmax are computed in float32 all the same, and
        attention is chosen by the device, too.
      storage: one of these or "int8": what kernels are kept in.
      mesh: spread the variables over this mesh. None puts them on the device; of several, each gets
        a copy, and they share the clips of a list.
      check: whether to compare files and weights with the checksums that were saved.

    Raises:
      ValueError: no such model, one that cannot be fetched or converted, or as
        `saved_model.load`.
      TypeError: no name, mesh or truth value where one is expected.
      OSError: no room to convert it.
    """
    for argument, value, kinds in (
        ("name", name, (str, os.PathLike)),
        ("mesh", mesh, (Mesh, type(None))),
        ("check", check, (bool,)),
    ):
        if not isinstance(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{argument}: expected {wanted}, found {type(value).__name__}")
    directory = model_directory(name)
    if mesh is None and jax.process_count() == 1 and jax.device_count() > 1:
        mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    if dtype is None:
        dtype = default_dtype(_device(mesh))
    saved = saved_model.load(directory, dtype=dtype, storage=storage, mesh=mesh, check=check)
    fields = {field.name: getattr(saved, field.name) for field in dataclasses.fields(saved)}
    return Model(**fields)


def _device(mesh: Mesh | None) -> jax.Device:
    """One of those that the model will be on."""
    device: jax.Device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    return device


def _sounds(clips: Sequence[Any]) -> list[Any]:
    """The clips, all of them paths."""
    arrays = [number for number, clip in enumerate(clips) if not is_path(clip)]
    if arrays:
        raise ValueError(
            f"clip {arrays[0]}: expected the path of a file with sound, found an array; filterbanks"
            " of a waveform makes data.transforms.filterbank.audio_input"
        )
    return list(clips)


def _only(results: Iterable[T | FailedClip]) -> T:
    """The one result there is.

    Raises:
      ValueError: it is a failure.
    """
    (result,) = results
    if isinstance(result, FailedClip):
        raise ValueError(f"{result.source}: {result.reason}")
    return result
