"""Merging what a model says of several views of each clip."""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class MergedViews:
    """Class probabilities by clip.

    Attributes:
      ids: of the clips, in the order of their first view.
      probabilities: mean over the views, float32 `[N, C]`.
      num_views: different views of each clip, int64 `[N]`.
    """

    ids: tuple[Hashable, ...]
    probabilities: np.ndarray
    num_views: np.ndarray


def merge_views(
    ids: Sequence[Hashable],
    logits: np.ndarray,
    segments: Sequence[int] | np.ndarray,
    crops: Sequence[int] | np.ndarray,
) -> MergedViews:
    """Turns logits of views into probabilities (softmax) and averages those of the same clip.

    A view that occurs again (distributed evaluation pads with repetitions) counts once. Upstream
    identifies clips by file name without folder, so that clips of one name are merged; pass ids
    that are unique, such as positions in the annotation file.

    Args:
      ids: clip of each view `[V]`.
      logits: `[V, C]`.
      segments: choice of frames of each view `[V]`.
      crops: square of the frames of each view `[V]`.

    Raises:
      ValueError: the arguments have different lengths, or logits are NaN.

    Source: upstream's `single_modality/engines/engine_for_finetuning.py`, `merge`.
    """
    logits = np.asarray(logits, np.float32)
    views = len(ids)
    if logits.ndim != 2 or not views == len(logits) == len(segments) == len(crops):
        raise ValueError(
            f"expected ids, logits [V, C], segments and crops of the same views, found {views} ids,"
            f" logits of shape {logits.shape}, {len(segments)} segments and {len(crops)} crops"
        )
    if np.isnan(logits).any():
        bad = ids[int(np.isnan(logits).any(axis=1).argmax())]
        raise ValueError(f"expected logits that are numbers, found NaN for clip {bad!r}")
    numbers: dict[Hashable, int] = {}
    clips = np.array([numbers.setdefault(clip, len(numbers)) for clip in ids], np.int64)
    keys = np.stack([clips, np.asarray(segments), np.asarray(crops)], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    sums = np.zeros((len(numbers), logits.shape[1]))
    np.add.at(sums, clips[first], _softmax(logits[first]))
    counts = np.bincount(clips[first], minlength=len(numbers))
    means = (sums / counts[:, None]).astype(np.float32)
    return MergedViews(tuple(numbers), means, counts)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
