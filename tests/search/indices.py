"""Small indices of random vectors."""

import numpy as np

from internvideo_jax.search.index_file import Index, IndexedFile, IndexSettings

SETTINGS = IndexSettings("models/any", "0123456789abcdef", "float32", 4, 2.0, 1.0)


def random_vectors(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    """Vectors of length 1, float32 `[count, width]`."""
    vectors = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_index(count: int, per_file: int = 3) -> Index:
    """An index of `count` windows of two seconds, a second apart, `per_file` of each file."""
    file_of = np.arange(count, dtype=np.int32) // per_file
    starts = np.arange(count) % per_file * 1.0
    files = [IndexedFile(f"/videos/{number}.mp4", number, number) for number in set(file_of)]
    times = np.stack([starts, starts + 2], axis=1)
    return Index(SETTINGS, tuple(files), file_of, times, random_vectors(count))
