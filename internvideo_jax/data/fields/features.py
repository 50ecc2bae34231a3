"""Features that were computed beforehand, such as those of frozen teachers."""

import functools
from pathlib import Path

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.field import Columns, Field, LazyClip
from internvideo_jax.data.mapped import MappedArray

PREFIX = "targets/"


class FeaturesField(Field):
    """`targets/NAME`, `[b, ...]`: rows of `features_dir`/NAME.npy, one for each clip of the config.

    The clips must look as they did when the features were computed: neither sampled nor augmented
    at random (`sampling="uniform"`, `augmentation="none"`).

    Raises:
      ValueError: there is no such file, or it has another number of rows than there are clips.
    """

    name = PREFIX

    def __init__(self, name: str, config: DataConfig, num_clips: int):
        if config.features_dir is None:
            raise ValueError(f"features_dir: expected the folder of {name}, found none; set it")
        self.name = name  # type: ignore[misc]  # each file is a field of its own
        path = Path(config.features_dir) / f"{name.removeprefix(PREFIX)}.npy"
        if not path.is_file():
            raise ValueError(f"{path}: expected an array of features, found no such file")
        self._rows = MappedArray(functools.partial(np.load, path, mmap_mode="r"))
        try:
            shape = self._rows().shape
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{path}: expected an array of features, found {error}; compute them anew"
            ) from error
        if shape[:1] != (num_clips,):
            raise ValueError(
                f"{path}: expected features of {num_clips} clips, found an array of shape {shape};"
                " compute them anew"
            )

    def evaluate(self, clip: LazyClip) -> Columns:
        # Not copied here: joining the rows of a batch does it.
        return {self.name: self._rows()[clip.index : clip.index + 1]}

    def blank(self) -> Columns:
        return {self.name: np.zeros_like(self._rows()[:1])}
