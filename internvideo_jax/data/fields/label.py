"""Class labels."""

import functools
from collections.abc import Mapping

import numpy as np

from internvideo_jax.config import nearest_name
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.field import Columns, Field, LazyClip, UnfitClip


class LabelField(Field):
    """`label`: int32 `[b]`, or float32 multi-hot `[b, C]` for `multi_label`.

    Where there is no clip, -1 or zeros.
    """

    name = "label"

    def __init__(self, config: DataConfig):
        if config.num_classes is None:
            raise ValueError("num_classes: expected a number of classes for labels; set it")
        self._config = config

    def evaluate(self, clip: LazyClip) -> Columns:
        return {"label": label_array(clip.record, self._config)[None]}

    def blank(self) -> Columns:
        if self._config.multi_label:
            return {"label": np.zeros((1, self._config.num_classes or 0), np.float32)}
        return {"label": np.full(1, -1, np.int32)}


def label_array(record: ClipRecord, config: DataConfig) -> np.ndarray:
    """A clip's label: int32 `[]`, or float32 multi-hot `[C]` for `multi_label`.

    Raises:
      UnfitClip: there is none, it is not below C or no name of a class, or there are several
        without `multi_label`.
    """
    count = config.num_classes or 0
    labels = record.label if isinstance(record.label, tuple) else (record.label,)
    numbers = _numbers(config.class_names() or ()) if any(map(_is_name, labels)) else {}
    known = [_class_number(record, label, count, numbers) for label in labels]
    if config.multi_label:
        array = np.zeros(count, np.float32)
        array[known] = 1
        return array
    if len(known) != 1:
        raise UnfitClip(
            f"{record.id}: expected one label, found {record.label}; set multi_label if clips have"
            " any number of them"
        )
    return np.asarray(known[0], np.int32)


def _class_number(
    record: ClipRecord, label: int | str | None, count: int, numbers: Mapping[str, int]
) -> int:
    if isinstance(label, str):
        if label in numbers:
            return numbers[label]
        near = nearest_name(label, numbers)
        raise UnfitClip(
            f"{record.id}: expected the name of one of {len(numbers)} classes, found {label!r}"
            f"{near}; correct the annotation, or name the classes with data.classes"
        )
    if label is None or not 0 <= label < count:
        raise UnfitClip(
            f"{record.id}: expected a label from 0 to {count - 1}, found {record.label}; correct"
            " the annotation or num_classes"
        )
    return label


def _is_name(label: int | str | None) -> bool:
    return isinstance(label, str)


@functools.lru_cache(maxsize=8)
def _numbers(classes: tuple[str, ...]) -> Mapping[str, int]:
    return {name: number for number, name in enumerate(classes)}
