"""A checkpoint on disk or on the hub to a saved model, one layer's tensors in memory at a time."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax import __version__
from internvideo_jax.convert.engine import registry
from internvideo_jax.convert.engine.adaptations import Inflation
from internvideo_jax.convert.engine.fitting import encoder_config, fit, retarget
from internvideo_jax.convert.engine.inference import infer_config
from internvideo_jax.convert.engine.plan import ANCHOR, Plan, canonical_names, plan
from internvideo_jax.convert.engine.state_dict import parameters, target_dtypes
from internvideo_jax.convert.engine.upstream import architecture_of
from internvideo_jax.convert.engine.writer import StreamingWriter
from internvideo_jax.convert.files.checkpoint import Checkpoint, LazyTensor
from internvideo_jax.convert.files.checksums import Checksums
from internvideo_jax.convert.files.sources import open_checkpoint
from internvideo_jax.files import atomic_directory
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.saved_model import ARRAYS, write_description

Progress = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a conversion; None leaves a choice to the checkpoint.

    Attributes:
      release: name in `registry.RELEASES`, which the checkpoint must then fit.
      architecture: what to make of it, e.g. "video_vit" for the encoder of a classifier alone.
      options: constructor options of the original model that its tensors do not show.
      num_frames: frames per clip that the model is to take.
      image_size: side of its frames in pixels.
      tubelet_size: frames per token.
      inflation: how a patch kernel is spread over a longer tubelet.
      num_classes: size of a classifier's head.
      new_head: whether to start an untrained head of that size.
      key: place in a PyTorch file to take the weights from, e.g. "model_ema".
    """

    release: str | None = None
    architecture: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_frames: int | None = None
    image_size: int | None = None
    tubelet_size: int | None = None
    inflation: Inflation | None = None
    num_classes: int | None = None
    new_head: bool = False
    key: str | None = None


@dataclasses.dataclass(frozen=True)
class Conversion:
    """An opened checkpoint and the plan of what becomes of it; nothing is read or written yet.

    Attributes:
      plan: the plan.
      checkpoints: the opened sources.
      tensors: their tensors by the names that the plan uses.
      dtypes: dtype of each parameter.
      request: what was asked.
    """

    plan: Plan
    checkpoints: tuple[Checkpoint, ...]
    tensors: Mapping[str, LazyTensor]
    dtypes: Mapping[str, np.dtype]
    request: Request

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that will be read."""
        return sum(self.tensors[name].nbytes for name in self.plan.loaded_names)


def prepare(sources: Sequence[str | Path], request: Request) -> Conversion:
    """Opens a checkpoint and plans its conversion from names and shapes.

    Args:
      sources: what `sources.open_checkpoint` takes. Of several, later ones add to and replace the
        tensors of earlier ones, as a stage-2 file does for stage-1 weights in upstream's probing.
        None at all is enough for a release that can be fetched.
      request: what to make of it.

    Raises:
      CheckpointError: not found, damaged, hostile or of an unknown format.
      CheckpointMisfit: keys are missing, extra or misshapen; all are listed.
      ValueError: another kind of model, an option that is needed or unknown, odd dtypes.
    """
    release = registry.find(request.release) if request.release else None
    if not sources:
        sources = [_source_of(release)]
    checkpoints = tuple(open_checkpoint(source, request.key) for source in sources)
    tensors = _merge(checkpoints)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    stored: dict[str, Any] = {}
    for checkpoint in checkpoints:
        stored |= _stored_options(checkpoint.metadata)
    architecture, given = request.architecture, dict(request.options)
    if request.new_head and request.num_classes is None:
        raise ValueError("expected the number of classes of the new head; pass --num_classes=N")
    if request.new_head:
        architecture = architecture or "video_classifier"
        given |= {} if request.num_classes is None else {"num_classes": request.num_classes}
    source = infer_config(shapes, architecture=architecture, given=given, stored=stored)
    if release is not None and (wrong := release.mismatches(source)):
        raise ValueError(
            f"expected {release.name} to have {'; '.join(wrong)} in {checkpoints[0].path}: this is"
            " another file (leave --model out to convert it as what it is)"
        )
    target = retarget(
        source,
        num_frames=request.num_frames,
        image_size=request.image_size,
        tubelet_size=request.tubelet_size,
        num_classes=request.num_classes,
    )
    canonical = {key: shapes[name] for key, name in canonical_names(shapes).items()}
    if request.new_head:
        canonical = {k: s for k, s in canonical.items() if not k.startswith("head.")}
    made = plan(
        shapes,
        architecture_of(target),
        target,
        adaptations=fit(canonical, source, target, request.inflation),
        new_head=request.new_head,
    )
    dtypes = target_dtypes(made, {name: tensor.dtype for name, tensor in tensors.items()})
    return Conversion(made, checkpoints, tensors, dtypes, request)


def write(
    conversion: Conversion,
    output: Path,
    progress: Progress | None = None,
    checksums: Checksums | None = None,
) -> dict[str, Any]:
    """Writes a prepared conversion as a saved model.

    Args:
      conversion: from `prepare`.
      output: directory to make; may exist if it is empty.
      progress: called with the number of bytes that were read of the checkpoint since the last
        call.
      checksums: where the sources' sums may be under way already; None records none.

    Returns:
      The metadata that was stored with the model: "source" and "conversion".

    Raises:
      FileExistsError: the output exists and is not empty.
      OSError: the disk is full or cannot be written; nothing remains.
    """
    started = time.perf_counter()
    files = _files(conversion)
    if checksums is not None:
        for file in files:
            checksums.start(file)
    with atomic_directory(output) as directory:
        _write_arrays(conversion, directory / ARRAYS, progress)
        seconds = time.perf_counter() - started
        sha256 = checksums.wait(files) if checksums is not None else {}
        metadata = {
            "source": _describe_source(conversion, sha256),
            "conversion": {
                **conversion.plan.report(),
                "internvideo_jax": __version__,
                "seconds_writing": round(seconds, 2),
            },
        }
        config = conversion.plan.config
        encoder = encoder_config(config)
        preprocessing = Preprocessing(
            VideoPreprocessing(image_size=encoder.image_size, num_frames=encoder.num_frames)
        )
        write_description(directory, conversion.plan.architecture, config, preprocessing, metadata)
    return metadata


def _write_arrays(conversion: Conversion, directory: Path, progress: Progress | None) -> None:
    made, tensors, dtypes = conversion.plan, conversion.tensors, conversion.dtypes
    stacked = {a.target for a in made.loaded if a.index is not None}
    read = 0

    def read_tensor(name: str) -> np.ndarray:
        nonlocal read
        read += tensors[name].nbytes
        return tensors[name].read()

    with StreamingWriter(directory) as writer:
        for target, shape in made.targets.items():
            writer.declare(target, shape, dtypes[target], target in stacked)
        for assignment, array in parameters(made, read_tensor):
            array = array.astype(dtypes[assignment.target], copy=False)
            writer.write(assignment.target, array, assignment.index)
            if progress is not None:
                progress(read)
                read = 0


def convert(
    sources: Sequence[str | Path],
    output: Path,
    request: Request | None = None,
    progress: Progress | None = None,
    sha256: bool = False,
) -> Conversion:
    """`prepare` and `write`; with `sha256` the model records the sums of its sources."""
    with Checksums() as checksums:
        conversion = prepare(sources, request or Request())
        write(conversion, Path(output), progress, checksums if sha256 else None)
    return conversion


def _source_of(release: registry.Released | None) -> str:
    if release is None:
        raise ValueError(
            "expected a checkpoint: a file, a folder, a Hugging Face repository, or --model=NAME of"
            " a released one"
        )
    if release.source is None:
        raise ValueError(
            f"expected a checkpoint file for {release.name}, which cannot be fetched"
            f" ({release.status}{': ' + release.note if release.note else ''}); pass your own file"
        )
    return release.source


def _merge(checkpoints: Sequence[Checkpoint]) -> Mapping[str, LazyTensor]:
    """All tensors; of several checkpoints by canonical key, later ones replacing earlier ones."""
    if len(checkpoints) == 1:
        return checkpoints[0].tensors
    merged: dict[str, LazyTensor] = {}
    for checkpoint in checkpoints:
        # A file that only adds a head has no patch embedding to tell a prefix by.
        has_anchor = any(key.endswith(ANCHOR) for key in checkpoint)
        names = canonical_names(checkpoint) if has_anchor else {key: key for key in checkpoint}
        merged |= {key: checkpoint[name] for key, name in names.items()}
    return merged


def _stored_options(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor options among what a file stores beside its tensors."""
    found: dict[str, Any] = {}
    for name in ("config", "args"):
        value = metadata.get(name)
        if isinstance(value, str):
            # The metadata of a safetensors file are texts.
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        if isinstance(value, Mapping):
            found |= value
    return found


def _describe_source(conversion: Conversion, sha256: Mapping[Path, str]) -> dict[str, Any]:
    files = [
        {"name": path.name, "bytes": path.stat().st_size}
        | ({"sha256": sha256[path]} if path in sha256 else {})
        for path in _files(conversion)
    ]
    description: dict[str, Any] = {"files": files}
    if conversion.request.release:
        release = registry.find(conversion.request.release)
        description["release"] = {"name": release.name, "licence": release.licence}
    keys = [checkpoint.key for checkpoint in conversion.checkpoints if checkpoint.key]
    return description | ({"keys": keys} if keys else {})


def _files(conversion: Conversion) -> list[Path]:
    return sorted({tensor.path for tensor in conversion.tensors.values()})
