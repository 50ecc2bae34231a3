"""`python -m ...decode_worker SIDE CLIP...`: one side of the decoder's benchmark."""

import hashlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from internvideo_jax.launch.benchmarks.processes import limit_threads, serve

NUM_FRAMES = 8
SIZE = 224

# From a path to the views of its frames, uint8 `[T, SIZE, SIZE, 3]`.
Load = Callable[[str], np.ndarray]


def main() -> int:
    """Serves until the standard input ends."""
    side, clips = sys.argv[1], sys.argv[2:]
    limit_threads(1)

    def prepare() -> tuple[Callable[[], None], dict[str, Any]]:
        load = decord_loader() if side == "decord" else our_loader()

        def run() -> None:
            for clip in clips:
                load(clip)

        return run, {
            "digests": [hashlib.sha256(load(clip).tobytes()).hexdigest() for clip in clips]
        }

    serve(prepare)
    return 0


def our_loader() -> Load:
    """This library's reader."""
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.data.decode.clips import open_clip
    from internvideo_jax.data.transforms.frames import eval_frame
    from internvideo_jax.data.transforms.sampling import uniform_indices

    def load(path: str) -> np.ndarray:
        with open_clip(ClipRecord(path, path)) as clip:
            indices = uniform_indices(clip.num_frames, NUM_FRAMES)
            return clip.read(indices, transform=lambda frame: eval_frame(frame, SIZE))

    return load


def decord_loader() -> Load:
    """What upstream's data sets do, with the same sampling and the same views."""
    import decord

    from internvideo_jax.data.transforms.frames import eval_frame
    from internvideo_jax.data.transforms.sampling import uniform_indices

    def load(path: str) -> np.ndarray:
        video = decord.VideoReader(path, num_threads=1)
        frames = video.get_batch(uniform_indices(len(video), NUM_FRAMES).tolist()).asnumpy()
        return np.stack([eval_frame(frame, SIZE) for frame in frames])

    return load


if __name__ == "__main__":
    raise SystemExit(main())
