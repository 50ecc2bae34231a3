"""Frames of the clips of a data set: video files, folders of images and single images alike."""

import io
import os
import re
import stat
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from internvideo_jax.data.annotations.entries import FRAME_PATTERN
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.paths import IMAGE_EXTENSIONS, is_hidden
from internvideo_jax.data.decode.video import (
    DEFAULT_LIMITS,
    ClipReader,
    Limits,
    Transform,
    VideoError,
    VideoReader,
    check_clip_size,
    check_numbers,
)
from internvideo_jax.data.decode.video_file import turn_to_decode


def open_clip(
    record: ClipRecord,
    *,
    data: bytes | Sequence[bytes] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> ClipReader:
    """Opens a clip and finds its frames.

    Of a video file, the clip has the frames that are on screen at any time in [start, end). A
    folder is one of images: as many and with such names as the record says, or all that it has in
    the natural order of their names ("2.jpg" before "10.jpg"), but for hidden ones. The numbers of
    a pattern begin with 1, or with 0 if the images do.

    Args:
      record: the clip.
      data: the bytes of its video file or image, or of each image of its folder, if they are not to
        be read from `record.path`; errors name the paths all the same.
      limits: what reading may cost.

    Raises:
      VideoError: it cannot be read, or begins after the end of its file.
    """
    if isinstance(data, Sequence) and not isinstance(data, bytes):
        return _ImageClip(record, _names_in_memory(record, len(data)), limits, data)
    if data is None and (names := image_names(record, limits=limits)):
        return _ImageClip(record, names, limits)
    if data is not None and _is_image(record):
        return _ImageClip(record, [record.path], limits, [data])
    return VideoReader(record.path, limits=limits, data=data, start=record.start, end=record.end)


def image_names(record: ClipRecord, *, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Paths of a clip's images in order; none for a video file.

    Raises:
      VideoError: a folder without images, one that cannot be listed, or too many for the limits.
    """
    if record.num_frames is not None:
        _check_count(record, record.num_frames, limits)
        pattern = record.frame_pattern or FRAME_PATTERN
        first = _first_number(record.path, pattern, record.num_frames)
        names = [pattern.format(first + number) for number in range(record.num_frames)]
    elif os.path.isdir(record.path):
        names = _list_images(record.path)
    else:
        return [record.path] if _is_image(record) else []
    return [os.path.join(record.path, name) for name in names]


class _ImageClip(ClipReader):
    """Images as the frames of a clip, all of the size of the first."""

    def __init__(
        self,
        record: ClipRecord,
        names: Sequence[str],
        limits: Limits,
        data: Sequence[bytes] | None = None,
    ):
        _check_count(record, len(names), limits)
        self._path = record.path
        self._names = names
        self._limits = limits
        self._data = data
        self._shape = self._load(0).shape
        self.num_frames = len(names)

    def read(
        self, indices: Sequence[int] | np.ndarray, *, transform: Transform | None = None
    ) -> np.ndarray:
        numbers = check_numbers(self._path, indices, self.num_frames)
        wanted: list[int] = np.unique(numbers).tolist()
        height, width, _ = self._shape
        if transform is None:
            check_clip_size(self._path, len(wanted), width, height, self._limits)
        decoded = {}
        for number in wanted:
            frame = self._load(number)
            if frame.shape != self._shape:
                raise VideoError(
                    self._names[number],
                    f"an image of {width}x{height}, as the first of its folder",
                    f"{frame.shape[1]}x{frame.shape[0]}",
                    "bring all of them to one size",
                )
            decoded[number] = frame if transform is None else transform(frame)
        return np.stack([decoded[number] for number in numbers.tolist()])

    def _load(self, number: int) -> np.ndarray:
        data = None if self._data is None else self._data[number]
        return read_image(self._names[number], data=data, limits=self._limits)


def read_image(
    path: str, *, data: bytes | None = None, limits: Limits = DEFAULT_LIMITS
) -> np.ndarray:
    """Decodes a JPEG or PNG file.

    Args:
      path: the file; where `data` is given, what errors call it.
      data: the bytes of a file that is not on disk.
      limits: what reading may cost.

    Returns:
      uint8 `[H, W, 3]`, RGB, upright; transparency is ignored.

    Raises:
      VideoError: not a complete, regular file of that kind with 8 bits per channel within the
        limits.
    """
    try:
        if data is None and not stat.S_ISREG(os.stat(path).st_mode):
            raise VideoError(path, "an image file", "a folder, device or pipe", "check the path")
        source = path if data is None else io.BytesIO(data)
        with Image.open(source, formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if width * height > limits.max_frame_pixels:
                raise VideoError(
                    path,
                    f"images of at most {limits.max_frame_pixels} pixels",
                    f"{width}x{height}",
                    "scale it down or raise Limits.max_frame_pixels",
                )
            if image.mode[0] in "IF":
                raise VideoError(
                    path, "8 bits per channel", f"mode {image.mode}", "convert the image"
                )
            with turn_to_decode(width * height):
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except VideoError:
        raise
    # Pillow's decoders fail with whatever the damage leads them to.
    except Exception as error:
        found = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise VideoError(
            path, "an undamaged JPEG or PNG file", found, "check the path, or copy it again"
        ) from error


def _check_count(record: ClipRecord, count: int, limits: Limits) -> None:
    if not 0 < count <= limits.max_frames:
        raise VideoError(
            record.path,
            f"1 to {limits.max_frames} images",
            f"{count}",
            "split the folder or raise Limits.max_frames",
        )


def _is_image(record: ClipRecord) -> bool:
    return record.path.lower().endswith(IMAGE_EXTENSIONS)


def _names_in_memory(record: ClipRecord, count: int) -> list[str]:
    pattern = record.frame_pattern or "{}"
    return [os.path.join(record.path, pattern.format(number)) for number in range(1, count + 1)]


def _first_number(folder: str, pattern: str, count: int) -> int:
    """1, or 0 where there is an image of that number, and none of the last that would count."""

    def exists(number: int) -> bool:
        return os.path.lexists(os.path.join(folder, pattern.format(number)))

    return 0 if exists(0) and not exists(count) else 1


def _list_images(folder: str) -> list[str]:
    try:
        found = [name for name in os.listdir(folder) if not is_hidden(name)]
    except OSError as error:
        raise VideoError(
            folder, "a folder of images", error.strerror or str(error), "check the path"
        ) from error
    names = [name for name in found if name.lower().endswith(IMAGE_EXTENSIONS)]
    if not names:
        raise VideoError(
            folder,
            f"a folder of images ({', '.join(IMAGE_EXTENSIONS)})",
            "none in it",
            "check the path",
        )
    return sorted(names, key=_natural_order)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """A key that puts "2.jpg" before "10.jpg"."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name)
    return [(int(digits) if digits else -1, text) for digits, text in parts]
