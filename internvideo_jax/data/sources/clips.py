"""Random access to the clips of a data set: files, shards, or tensorflow_datasets."""

import dataclasses
import hashlib
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from internvideo_jax.config import nearest_name
from internvideo_jax.data.annotations.entries import FRAME_PATTERN
from internvideo_jax.data.annotations.folders import read_class_folders
from internvideo_jax.data.annotations.lists import ClipList, read_annotations
from internvideo_jax.data.annotations.records import AnnotationError, ClipRecord
from internvideo_jax.data.config import ClipSet
from internvideo_jax.data.sources.shards import ShardSource
from internvideo_jax.data.sources.source import ClipSource, SourceClip

_log = logging.getLogger(__name__)

# Recipes name the format of the released lists; users bring files of their own to them.
_SELF_NAMED = (".jsonl", ".ndjson", ".json")


def open_source(
    clips: ClipSet, *, num_classes: int | None = None, classes: Sequence[str] | None = None
) -> ClipSource:
    """Opens a set of clips that names exactly one place.

    Args:
      clips: where they are.
      num_classes: C, so that every clip needs a label and every label is below C. Annotations are
        checked here, other places clip by clip as they are read.
      classes: names of these classes, which labels may be instead.

    Raises:
      ValueError: the place cannot be used; says why.
    """
    if clips.annotations is not None:
        if os.path.isdir(clips.annotations):
            return RecordSource(_read_folders(clips.annotations, num_classes, classes))
        return RecordSource(_read_annotations(clips, num_classes, classes))
    if clips.shards is not None:
        return ShardSource(clips.shards)
    assert clips.tfds is not None
    return TfdsSource(clips.tfds, clips.tfds_split)


def annotation_root(clips: ClipSet) -> str:
    """The folder that the paths of annotations start from."""
    path = str(clips.annotations)
    if os.path.isdir(path):
        return os.path.abspath(path)
    return os.path.abspath(clips.root or os.path.dirname(path))


def _read_folders(
    folder: str, num_classes: int | None, classes: Sequence[str] | None
) -> Sequence[ClipRecord]:
    """The records of a folder that holds a folder for each class."""
    root = os.path.abspath(folder)
    clips = read_class_folders(root)
    found, known = {clip.label for clip in clips}, frozenset(classes or ())
    if num_classes is not None and len(found) > num_classes:
        raise ValueError(
            f"{folder}: expected folders for at most {num_classes} classes, found {len(found)};"
            " remove some, or correct the number"
        )
    strange = sorted(found - known) if classes is not None else []
    if strange:
        raise ValueError(
            f"{folder}: expected folders named for the {len(known)} classes, found"
            f" {', '.join(map(repr, strange[:5]))}{nearest_name(strange[0], known)}; correct the"
            " names, or add the classes to those that are trained"
        )
    return [
        ClipRecord(os.path.relpath(clip.path, root), clip.path, label=clip.label) for clip in clips
    ]


def _read_annotations(
    clips: ClipSet, num_classes: int | None, classes: Sequence[str] | None
) -> Sequence[ClipRecord]:
    """The records of an annotation file, in the format of the config or else in its own."""
    path = str(clips.annotations)

    def read(format: str, separator: str | None) -> Sequence[ClipRecord]:
        return read_annotations(
            path,
            root=clips.root,
            format=format,
            separator=separator,
            frame_pattern=clips.frame_pattern or FRAME_PATTERN,
            num_classes=num_classes,
            classes=classes,
        )

    if path.lower().endswith(_SELF_NAMED) or (clips.format, clips.separator) == ("auto", None):
        return read("auto", clips.separator)
    try:
        return read(clips.format, clips.separator)
    except AnnotationError as error:
        try:
            records = read("auto", None)
        except AnnotationError as other:
            is_better = other.num_entries > 0 and other.num_problems < error.num_problems
            raise (other if is_better else error) from None
    _log.warning("%s: read as its lines are, not in the config's format (%s)", path, clips.format)
    return records


class RecordSource:
    """Clips that are files or folders of images on disk.

    Attributes:
      records: what is known of them, in order; any sequence that does not change.
    """

    def __init__(self, records: Sequence[ClipRecord]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> SourceClip:
        return SourceClip(self.records[index])

    def digest(self) -> str:
        """Of what decides the frames: which of which files, and their sizes and times."""
        digest = hashlib.sha256()
        for record in self.records:
            try:
                status = os.stat(record.path)
                state = (status.st_size, status.st_mtime_ns)
            except OSError:
                state = (-1, -1)
            cut = (record.start, record.end, record.num_frames, record.frame_pattern)
            digest.update(repr((record.path, cut, state)).encode())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Of the records without their paths."""
        if isinstance(self.records, ClipList):
            return self.records.fingerprint
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(repr(dataclasses.replace(record, path="")).encode())
        return digest.hexdigest()

    def first_of_many_labels(self) -> int | None:
        """Index of the first clip whose labels are a list, and not of one; None if none is."""
        if isinstance(self.records, ClipList):
            return self.records.summary.first_of_many_labels
        many = (
            index
            for index, record in enumerate(self.records)
            if isinstance(record.label, tuple) and len(record.label) != 1
        )
        return next(many, None)


class TfdsSource:
    """A data set of tensorflow_datasets in a random-access format, with its videos decoded.

    The video and the label are the supervised keys of the data set, or "video" and "label".

    Args:
      name: "name", "name/config" or "name:version".
      split: e.g. "train" or "train[:10%]".

    Raises:
      ValueError: a data set without videos, or TensorFlow is not installed.
    """

    def __init__(self, name: str, split: str):
        self._name = f"{name}/{split}"
        builder = _import_tfds().builder(name)
        builder.download_and_prepare(file_format="array_record")
        features = builder.info.features
        keys = builder.info.supervised_keys or ("video", "label")
        self._video, self._label = keys[0], keys[1] if keys[1] in features else None
        if self._video not in features or tuple(features[self._video].shape[-1:]) != (3,):
            raise ValueError(
                f"{name}: expected a data set with RGB videos as {self._video!r}, found"
                f" {', '.join(features)}; export its clips as files with annotations"
            )
        try:
            self._clips: Sequence[Mapping[str, Any]] = builder.as_data_source(split=split)
        except NotImplementedError as error:
            raise ValueError(
                f"{name}: expected a data set in a random-access format, found"
                f" {builder.info.file_format}; prepare it anew with file_format='array_record'"
            ) from error
        self._version = f"{builder.info.full_name}/{split}/{len(self._clips)}"

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> SourceClip:
        clip = self._clips[index]
        name = f"{self._name}/{index}"
        label = None if self._label is None else _label(np.asarray(clip[self._label]))
        frames = np.asarray(clip[self._video], np.uint8)
        return SourceClip(ClipRecord(id=name, path=name, label=label), frames=frames)

    def digest(self) -> str:
        """Of the data set's version and split."""
        return hashlib.sha256(self._version.encode()).hexdigest()

    fingerprint = digest


def _label(value: np.ndarray) -> int | tuple[int, ...]:
    return tuple(value.tolist()) if value.ndim else int(value)


def _import_tfds() -> ModuleType:
    # Videos are described and written by means of TensorFlow, whatever format they are read from.
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            "expected TensorFlow, which tensorflow_datasets needs for videos, found it not"
            " installed: pip install 'internvideo-jax[tf]'"
        )
    return importlib.import_module("tensorflow_datasets")
