"""Clips that a program hands over: paths of files, or frames in memory."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.sources.clips import RecordSource
from internvideo_jax.data.sources.source import SourceClip

# A path of a video, image or folder of images, or frames uint8 `[T, H, W, 3]`.
Clip = str | os.PathLike[str] | np.ndarray

_EXPECTED = "uint8 RGB frames [T, H, W, 3] with values from 0 to 255"


class GivenSource(RecordSource):
    """Paths and frames as a source of clips; frames are named for their place, "clip 3".

    Args:
      clips: paths, and arrays as `check_frames` takes them.

    Raises:
      ValueError: an array of another layout, dtype or range.
    """

    def __init__(self, clips: Iterable[Clip]):
        records = []
        self._frames: dict[int, np.ndarray] = {}
        for number, clip in enumerate(clips):
            if is_path(clip):
                name = os.fspath(clip)
            else:
                name = f"clip {number}"
                self._frames[number] = check_frames(clip, name)
            records.append(ClipRecord(id=name, path=name))
        super().__init__(records)

    def __getitem__(self, index: int) -> SourceClip:
        return SourceClip(self.records[index], frames=self._frames.get(index))


def split_clips(clips: Any) -> tuple[Sequence[Clip], bool]:
    """The clips that are meant, and whether it is one alone.

    Args:
      clips: a path, or frames of one clip; or any number of these: a list, an iterator, or an array
        `[B, T, H, W, 3]`.
    """
    if is_path(clips):
        return [clips], True
    if isinstance(clips, bytes | bytearray | memoryview):
        raise ValueError(
            f"expected paths of clips or {_EXPECTED}, found {type(clips).__name__}; of a path,"
            " pass os.fsdecode(path); a video in memory has to be written to a file"
        )
    if hasattr(clips, "__array__"):
        array = np.asarray(clips)
        return (list(array), False) if array.ndim > 4 else ([array], True)
    if isinstance(clips, Mapping) or not isinstance(clips, Iterable):
        raise ValueError(
            f"expected paths of clips or {_EXPECTED}, found {type(clips).__name__}; pass one clip"
            " or a list of them"
        )
    return list(clips), False


def is_path(clip: Any) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a clip is given by its path."""
    return isinstance(clip, str | os.PathLike)


def check_frames(frames: Any, name: str) -> np.ndarray:
    """Frames of a clip as they are decoded.

    Args:
      frames: what is to be uint8 `[T, H, W, 3]`, RGB: an array of NumPy or what becomes one.
      name: what errors call it.

    Returns:
      The same as a NumPy array.

    Raises:
      ValueError: another layout, dtype or range; says what to do about it.
    """
    array = np.asarray(frames)
    if array.ndim == 0:
        found, remedy = type(frames).__name__, "pass an array, or a path as str or os.PathLike"
    elif array.dtype.kind not in "biuf":
        found, remedy = f"{type(frames).__name__} of {array.dtype}", "pass an array, or a path"
    elif not array.size:
        found, remedy = f"shape {array.shape}", "leave the empty clip out"
    elif layout := _layout_remedy(array.shape):
        found, remedy = f"shape {array.shape}", layout
    elif array.dtype != np.uint8:
        found, remedy = _range_remedy(array)
    else:
        return array
    raise ValueError(f"{name}: expected {_EXPECTED}, found {found}; {remedy}")


def _layout_remedy(shape: tuple[int, ...]) -> str | None:
    """What makes `[T, H, W, 3]` of another shape; None if it is that."""
    if len(shape) == 4:
        if shape[-1] == 3:
            return None
        for axis, named in ((1, "[T, 3, H, W]"), (0, "[3, T, H, W]")):
            if shape[axis] == 3:
                return f"if the channels come first, {named}, pass np.moveaxis(frames, {axis}, -1)"
        if shape[-1] == 1:
            return "of grey frames, pass np.repeat(frames, 3, axis=-1)"
        if shape[-1] == 4:
            return "of frames with transparency, pass frames[..., :3]"
    if len(shape) == 3:
        stacked = (
            "a single picture is a clip of one frame: pass {}; frames of one clip in a list:"
            " np.stack(frames)"
        )
        if shape[-1] == 3:
            return stacked.format("frames[None]")
        if shape[0] == 3:
            return stacked.format("np.moveaxis(frames, 0, -1)[None]")
        return "of grey frames [T, H, W], pass np.repeat(frames[..., None], 3, axis=-1)"
    return "pass the frames of one clip, or a list of such clips"


def _range_remedy(array: np.ndarray) -> tuple[str, str]:
    """What numbers of another dtype are, and what makes bytes of them."""
    low, high = array.min(), array.max()
    found = f"{array.dtype} from {low:g} to {high:g}"
    if array.dtype.kind == "b":
        return found, "pass 255 * frames.astype(np.uint8)"
    if not np.isfinite((low, high)).all():
        return f"{array.dtype} with NaN or infinities", "pass the frames as they were decoded"
    if array.dtype.kind in "iu":
        if low >= 0 and high <= 255:
            return found, "pass frames.astype(np.uint8)"
        return found, "of 16-bit frames, pass (frames // 257).astype(np.uint8)"
    if low >= 0 and high <= 1:
        return found, "pass np.round(255 * frames).astype(np.uint8)"
    if low >= -1 and high <= 1:
        scaled = "np.round(127.5 * (frames + 1)).astype(np.uint8)"
        return found, f"if they are scaled to -1..1, pass {scaled}{_NORMALISED}"
    if low >= 0 and high <= 255:
        return found, "pass np.round(frames).astype(np.uint8)"
    return found, f"pass the frames as they were decoded{_NORMALISED}"


_NORMALISED = (
    "; what is normalised already is for model.module.apply(model.variables, frames[None])"
)
