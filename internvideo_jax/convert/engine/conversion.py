"""A checkpoint on disk or on the hub to a saved model, one layer's tensors in memory at a time."""

import contextlib
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax import __version__
from internvideo_jax.class_names import check_order, read_class_names
from internvideo_jax.convert.engine import registry
from internvideo_jax.convert.engine.adaptations import Inflation
from internvideo_jax.convert.engine.family import Family
from internvideo_jax.convert.engine.plan import Plan, plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.state_dict import parameters, target_dtypes
from internvideo_jax.convert.engine.tokenizer_files import find_tokenizer_files
from internvideo_jax.convert.engine.upstream import infer
from internvideo_jax.convert.engine.writer import Declared, write_arrays
from internvideo_jax.convert.files.checkpoint import Checkpoint, LazyTensor
from internvideo_jax.convert.files.checksums import Checksums
from internvideo_jax.convert.files.labels import Labels, labels_beside
from internvideo_jax.convert.files.sources import distinct_names, open_checkpoint
from internvideo_jax.files import atomic_directory, parse_json
from internvideo_jax.model_description import ARRAYS, write_description
from internvideo_jax.preprocessing import Preprocessing

Progress = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a conversion; None leaves a choice to the checkpoint.

    Attributes:
      release: name of one of the `registry.releases`, which the checkpoint must then fit.
      architecture: what to make of it, e.g. the encoder of a classifier alone.
      options: constructor options of the original model that its tensors do not show.
      changes: clips, texts and classes that the model is to take: num_frames, image_size,
        tubelet_size, max_text_length, num_classes.
      inflation: how a patch kernel is spread over a longer tubelet.
      new_head: whether to start an untrained head of as many classes.
      to_int8: whether kernels of linear layers become int8 values with scales.
      key: place in a PyTorch file to take the weights from, e.g. "model_ema".
      tokenizer: folder of the tokenizer's files, if they do not lie beside the checkpoint.
      classes: names of the classes, or a file of them (`class_names.read_class_names`); by default
        those of a label file beside the checkpoint that fits.
      allow_nonfinite: whether weights may be NaN or infinite.
    """

    release: str | None = None
    architecture: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    inflation: Inflation | None = None
    new_head: bool = False
    to_int8: bool = False
    key: str | None = None
    tokenizer: Path | None = None
    classes: Sequence[str] | Path | None = None
    allow_nonfinite: bool = False


@dataclasses.dataclass(frozen=True)
class Conversion:
    """An opened checkpoint and the plan of what becomes of it; nothing is read or written yet.

    Attributes:
      plan: the plan.
      family: whose files they are.
      checkpoints: the opened sources.
      tensors: their tensors by the names that the plan uses.
      dtypes: dtype of each parameter.
      tokenizer: the tokenizer's files by name.
      request: what was asked.
      classes: names of the classes, where they are known.
      notes: lines about what the file records and what it does not.
    """

    plan: Plan
    family: Family
    checkpoints: tuple[Checkpoint, ...]
    tensors: Mapping[str, LazyTensor]
    dtypes: Mapping[str, np.dtype]
    tokenizer: Mapping[str, Path]
    request: Request
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that will be read."""
        return sum(self.tensors[name].nbytes for name in self.plan.loaded_names)

    @property
    def num_parameters(self) -> int:
        """Numbers in all parameters."""
        return sum(map(math.prod, self.plan.targets.values()))

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parameters that will be written."""
        targets = self.plan.targets.items()
        return sum(math.prod(shape) * self.dtypes[path].itemsize for path, shape in targets)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the model's inputs must have gone through."""
        return self.family.preprocessing(self.plan.config)

    def summary(self) -> list[str]:
        """Lines: what model it is, how many tensors are loaded, what each of several files gave,
        and notes."""
        names = distinct_names([checkpoint.path for checkpoint in self.checkpoints])
        made = self.plan
        described = self.family.describe(made.config)
        lines = [f"{names[0]}: {made.architecture}, {described}", made.summary()]
        if len(names) > 1:
            of_file = [made.sources[key][0] for key in made.loaded_keys]
            lines += [f"{name}: {of_file.count(i)} tensors" for i, name in enumerate(names)]
        return [*lines, *self.notes]


def prepare(sources: Sequence[str | Path], request: Request) -> Conversion:
    """Opens a checkpoint and plans its conversion from names and shapes.

    Args:
      sources: what `sources.open_checkpoint` takes. Of several, later ones add to and replace the
        tensors of earlier ones, as a stage-2 file does for stage-1 weights in upstream's probing;
        the files of a composite's parts are put together (see `recognition.recognize`). None at
        all is enough for a release that can be fetched.
      request: what to make of it.

    Raises:
      CheckpointError: not found, damaged, hostile or of an unknown format.
      CheckpointMisfit: keys are missing, extra or misshapen; all are listed.
      ValueError: another kind of model, an option that is needed or unknown, odd dtypes, tokenizer
        files that are not there.
    """
    release = registry.find(request.release) if request.release else None
    if not sources:
        sources = _sources_of(release)
    checkpoints = tuple(open_checkpoint(source, request.key) for source in sources)
    files = [{name: t.shape for name, t in checkpoint.items()} for checkpoint in checkpoints]
    stored: dict[str, Any] = {}
    for checkpoint in checkpoints:
        stored |= _stored_options(checkpoint.metadata)
    architecture = request.architecture or (release.architecture if release else None)
    found = recognize(*files, architecture=architecture)
    given = dict(request.options)
    if request.new_head:
        if "num_classes" not in request.changes:
            raise ValueError("expected the number of classes of the new head; pass --num_classes=N")
        given["num_classes"] = request.changes["num_classes"]
        if architecture is None and found.family.new_head is not None:
            found = recognize(*files, architecture=found.family.new_head)
    source, notes = infer(found, given, stored)
    changes = {**(release.changes if release else {}), **request.changes}
    if release is not None and (wrong := release.mismatches(source)):
        raise ValueError(
            f"expected {release.name} to have {'; '.join(wrong)} in {checkpoints[0].path}: this is"
            " another file (leave --model out to convert it as what it is)"
        )
    made = plan(
        found,
        source,
        target=found.family.retarget(source, changes),
        inflation=request.inflation,
        new_head=request.new_head,
        to_int8=request.to_int8,
    )
    tensors = {
        made.names[key]: checkpoints[number][name] for key, (number, name) in made.sources.items()
    }
    dtypes = target_dtypes(made, {name: tensor.dtype for name, tensor in tensors.items()})
    preprocessing = found.family.preprocessing(made.config)
    folders = [_folder(checkpoint) for checkpoint in checkpoints]
    tokenizer = find_tokenizer_files(preprocessing, folders, request.tokenizer, release)
    labels = _labels(made.config, sources, checkpoints, request)
    return Conversion(
        plan=made,
        family=found.family,
        checkpoints=checkpoints,
        tensors=tensors,
        dtypes=dtypes,
        tokenizer=tokenizer,
        request=request,
        classes=labels.names,
        notes=(*notes, *labels.notes),
    )


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
      ValueError: weights are NaN or infinite; all of their tensors are listed.
      OSError: the disk is full (`DiskFullError`) or cannot be written; nothing remains.
    """
    started = time.perf_counter()
    files = _files(conversion)
    names = distinct_names([checkpoint.path for checkpoint in conversion.checkpoints])
    with atomic_directory(output, conversion.stored_bytes) as directory:
        if checksums is not None:
            for file in files:
                checksums.start(file)
        sums, not_finite = _write_arrays(conversion, directory / ARRAYS, progress)
        seconds = time.perf_counter() - started
        sha256 = checksums.wait(files) if checksums is not None else {}
        metadata = {
            "source": _describe_source(conversion, sha256),
            "conversion": {
                **conversion.plan.report(names),
                "notes": list(conversion.notes),
                "not_finite": not_finite,
                "internvideo_jax": __version__,
                "seconds_writing": round(seconds, 2),
            },
        }
        write_description(
            directory,
            conversion.plan.architecture,
            conversion.plan.config,
            conversion.preprocessing,
            metadata,
            conversion.tokenizer,
            classes=conversion.classes,
            sums=sums,
        )
    return metadata


def _write_arrays(
    conversion: Conversion, directory: Path, progress: Progress | None
) -> tuple[dict[str, int], dict[str, str]]:
    """Writes all parameters; returns their checksums, and what of which tensors is not finite."""
    made, tensors, dtypes = conversion.plan, conversion.tensors, conversion.dtypes
    stacked = {target for a in made.loaded if a.index is not None for target in a.targets}
    unread = set(made.loaded_names)

    def read_tensor(name: str) -> np.ndarray:
        if progress is not None and name in unread:
            unread.remove(name)
            progress(tensors[name].nbytes)
        return tensors[name].read()

    declared = {t: Declared(s, dtypes[t], t in stacked) for t, s in made.targets.items()}
    parts = (
        (target, index, array.astype(dtypes[target], copy=False))
        for target, index, array in parameters(made, read_tensor)
    )
    written = write_arrays(directory, declared, parts)
    not_finite = _by_tensor(made, declared, written.not_finite)
    if not_finite and not conversion.request.allow_nonfinite:
        raise ValueError(
            f"expected finite numbers, found others in {len(not_finite)} tensors:\n  "
            + "\n  ".join(f"{name}: {text}" for name, text in not_finite.items())
            + "\nthe model would give NaN; take an earlier checkpoint, or pass"
            " --allow_nonfinite to convert it as it is"
        )
    return written.sums, not_finite


def _by_tensor(
    made: Plan,
    declared: Mapping[str, Declared],
    not_finite: Mapping[tuple[str, int | None], Counter[str]],
) -> dict[str, str]:
    """What is not finite, and of how many numbers, by the tensors that these were made of."""
    sources = {
        (target, a.index): " with ".join(made.names[key] for key in a.keys)
        for a in made.loaded
        for target in a.targets
    }
    texts = {}
    for (target, index), counts in not_finite.items():
        shape = declared[target].shape
        size = math.prod(shape if index is None else shape[1:])
        found = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        texts[sources.get((target, index), target)] = f"{found} of {size:,}"
    return texts


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


def _sources_of(release: registry.Released | None) -> Sequence[str]:
    if release is None:
        raise ValueError(
            "expected a checkpoint: a file, a folder, a Hugging Face repository, or --model=NAME of"
            " a released one"
        )
    if not release.sources:
        raise ValueError(
            f"expected a checkpoint for {release.name}, which cannot be fetched"
            f" ({release.status}{': ' + release.note if release.note else ''}); pass your own:"
            f" {release.files}"
        )
    return release.sources


def _labels(
    config: Any, sources: Sequence[str | Path], checkpoints: Sequence[Checkpoint], request: Request
) -> Labels:
    """Names of the classes: those that are asked for, or of the folder or repository given.

    Raises:
      ValueError: names are asked for, and the model has no classes, or has them in another order by
        what the folder or repository says.
    """
    num_classes = getattr(config, "num_classes", 0)
    if request.classes is not None and not num_classes:
        raise ValueError(
            f"expected a classifier, whose classes have names, found a"
            f" {type(config).__name__.removesuffix('Config')}; leave --classes out"
        )
    found = Labels(None)
    if num_classes and not request.new_head:
        # Beside a file, what lies there need not belong to it.
        whole = [c for s, c in zip(sources, checkpoints, strict=True) if not Path(s).is_file()]
        found = labels_beside([_folder(checkpoint) for checkpoint in whole], num_classes)
    if request.classes is None:
        return found
    if isinstance(request.classes, Path):
        where, names = str(request.classes), read_class_names(request.classes, num_classes)
    else:
        where, names = "the names of the classes", tuple(request.classes)
    if found.names is not None:
        check_order(names, found.names, where)
    return Labels(names)


def _folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _stored_options(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor options among what a file stores beside its tensors."""
    found: dict[str, Any] = {}
    for name in ("config", "args", "cfg"):
        value = metadata.get(name)
        if isinstance(value, str):
            # The metadata of a safetensors file are texts.
            with contextlib.suppress(ValueError):
                value = parse_json(value, name)
        if isinstance(value, Mapping):
            found |= value
    return found


def _describe_source(conversion: Conversion, sha256: Mapping[Path, str]) -> dict[str, Any]:
    paths = _files(conversion)
    files = [
        {"name": name, "bytes": path.stat().st_size}
        | ({"sha256": sha256[path]} if path in sha256 else {})
        for name, path in zip(distinct_names(paths), paths, strict=True)
    ]
    description: dict[str, Any] = {"files": files}
    if conversion.request.release:
        release = registry.find(conversion.request.release)
        description["release"] = {"name": release.name, "licence": release.licence}
        if len(release.licences) > 1:
            description["release"]["licences"] = release.licences
    keys = [checkpoint.key for checkpoint in conversion.checkpoints if checkpoint.key]
    return description | ({"keys": keys} if keys else {})


def _files(conversion: Conversion) -> list[Path]:
    return sorted({tensor.path for tensor in conversion.tensors.values()})
