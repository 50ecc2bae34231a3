"""Pixels: a clip's frames, or one of them."""

import dataclasses
from typing import ClassVar

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.video import ClipReader
from internvideo_jax.data.fields.field import Columns, Draws, Field, LazyClip
from internvideo_jax.data.transforms.augmentation import (
    finetuning_augment,
    pretraining_augment,
    random_resized_crop,
)
from internvideo_jax.data.transforms.frames import center_crop, resizer
from internvideo_jax.data.transforms.randaugment import parse_policy
from internvideo_jax.data.transforms.sampling import sample_indices, uniform_indices
from internvideo_jax.data.transforms.views import cut_views, view_indices

# Left and right are part of what its labels say.
NEVER_FLIPPED = "ssv2"


class VideoField(Field):
    """`video`, `[b, T, S, S, 3]`: uint8, or float32 and normalised by fine-tuning's augmentation.

    In evaluation, uint8 always, and about each row:
      frame_indices: int64 `[b, T]`, numbers of its frames in the clip; -1 where there is no clip.
      timestamps: float64 `[b, T]`, their seconds after the file's start; NaN where unknown.
      num_frames: int64 `[b]`, frames of the clip.
      damaged_frames: int64 `[b]`, frames and packets that the decoder called damaged on the way.
    """

    name = "video"

    def __init__(self, config: DataConfig):
        self._config = config
        # Refuses what it cannot read.
        parse_policy(config.rand_augment)
        self._resize = resizer(config.resize, config.image_size)

    def train(self, clip: LazyClip, draws: Draws) -> Columns:
        config, reader = self._config, clip.reader
        size, copies = config.image_size, config.num_sample
        if config.augmentation == "none" and config.sampling == "uniform":
            # Leaves nothing to chance.
            indices = uniform_indices(reader.num_frames, config.num_frames)
            return {"video": self._view(reader, indices)}
        rng = draws()
        indices = sample_indices(
            config.sampling,
            reader.num_frames,
            config.num_frames,
            rate=config.sampling_rate,
            rng=rng,
        )
        if config.augmentation == "none":
            return {"video": self._view(reader, indices)}
        frames = reader.read(indices)
        flip = config.flip and clip.record.source != NEVER_FLIPPED
        if config.augmentation == "pretraining":
            views = [pretraining_augment(frames, rng, size, flip) for _ in range(copies)]
        elif config.augmentation == "random_resized_crop":
            views = [random_resized_crop(frames, rng, size, flip) for _ in range(copies)]
        else:
            views = [finetuning_augment(frames, rng, config, flip) for _ in range(copies)]
        return {"video": np.stack(views)}

    def _view(self, reader: ClipReader, indices: np.ndarray) -> np.ndarray:
        """The central view, uint8 `[1, T, S, S, 3]`."""
        frames = reader.read(indices, transform=self._resize)
        return center_crop(frames, self._config.image_size)[None]

    def evaluate(self, clip: LazyClip) -> Columns:
        config, reader = self._config, clip.reader
        indices = view_indices(config, reader.num_frames)
        # All at once, so that no frame is decoded twice.
        frames = reader.read(indices.ravel(), transform=self._resize)
        times = reader.timestamps(indices.ravel()).reshape(indices.shape)
        return {
            "video": cut_views(config, frames),
            "frame_indices": np.repeat(indices, config.crops, axis=0),
            "timestamps": np.repeat(times, config.crops, axis=0),
            "num_frames": np.array([reader.num_frames]),
            "damaged_frames": np.array([reader.damaged_frames]),
        }

    def blank(self) -> Columns:
        frames, size = self._config.num_frames, self._config.image_size
        return {
            "video": np.zeros((1, frames, size, size, 3), np.uint8),
            "frame_indices": np.full((1, frames), -1),
            "timestamps": np.full((1, frames), np.nan),
            "num_frames": np.zeros(1, np.int64),
            "damaged_frames": np.zeros(1, np.int64),
        }

    def generator(self, *numbers: int) -> np.random.Generator:
        """Without a name, as before there were other fields: runs go on with the same draws."""
        return np.random.default_rng(numbers)


class ImageField(Field):
    """`image`, `[b, 1, S, S, 3]`: one frame of an image or of a video, as `video` has it."""

    name: ClassVar[str] = "image"

    def __init__(self, config: DataConfig):
        self._video = VideoField(dataclasses.replace(config, num_frames=1))

    def train(self, clip: LazyClip, draws: Draws) -> Columns:
        return {"image": self._video.train(clip, draws)["video"]}

    def evaluate(self, clip: LazyClip) -> Columns:
        return {"image": self._video.evaluate(clip)["video"]}

    def blank(self) -> Columns:
        return {"image": self._video.blank()["video"]}
