"""Features that were computed beforehand, such as those of frozen teachers."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.field import Columns, Field, LazyClip

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
        self._path = Path(config.features_dir) / f"{name.removeprefix(PREFIX)}.npy"
        if not self._path.is_file():
            raise ValueError(f"{self._path}: expected an array of features, found no such file")
        self._lock = threading.Lock()
        self._mapped: np.ndarray | None = None
        if len(self._rows()) != num_clips:
            raise ValueError(
                f"{self._path}: expected features of {num_clips} clips, found {len(self._rows())};"
                " compute them anew"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_mapped": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def train(self, clip: LazyClip, rng: np.random.Generator) -> Columns:
        return {self.name: np.array(self._rows()[clip.index][None])}

    def evaluate(self, clip: LazyClip) -> Columns:
        return {self.name: np.array(self._rows()[clip.index][None])}

    def blank(self) -> Columns:
        return {self.name: np.zeros_like(self._rows()[:1])}

    def _rows(self) -> np.ndarray:
        with self._lock:
            if self._mapped is None:
                self._mapped = np.load(self._path, mmap_mode="r")
            return self._mapped
