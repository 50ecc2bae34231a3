"""Video, sound and images of any origin, and the sizes that containers announce."""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.audio import read_audio
from internvideo_jax.data.decode.clips import open_clip, read_image
from internvideo_jax.data.decode.video import Limits
from tests.fuzz.harness import Target

LIMITS = Limits(open_timeout=3, read_timeout=3, deadline=5)
# Suffix: codec and pixel format. Tiny, so that most bytes are those of the container.
VIDEOS = {
    ".mp4": ("mpeg4", "yuv420p"),
    ".mkv": ("mpeg4", "yuv420p"),
    ".webm": ("libvpx", "yuv420p"),
    ".avi": ("mpeg4", "yuv420p"),
    ".ts": ("mpeg2video", "yuv420p"),
    ".mpg": ("mpeg2video", "yuv420p"),
    ".flv": ("flv", "yuv420p"),
    ".wmv": ("wmv2", "yuv420p"),
    ".gif": ("gif", "rgb8"),
}
SOUNDS = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".m4a": "aac"}


def _video(path: Path, codec: str, pix_fmt: str) -> bytes:
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10, options={"g": "2"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, pix_fmt
        for number in range(4):
            picture = np.full((16, 16, 3), 60 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode())
    return path.read_bytes()


def _sound(path: Path, codec: str) -> bytes:
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=16_000, layout="mono")
        noise = np.random.default_rng(0).normal(0, 0.1, (1, 2_000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def _videos() -> Sequence[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [_video(Path(folder, f"a{end}"), *kind) for end, kind in VIDEOS.items()]


def _sounds() -> Sequence[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [_sound(Path(folder, f"a{end}"), codec) for end, codec in SOUNDS.items()]


def _images() -> Sequence[bytes]:
    found = []
    for kind, options in (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})):
        file = io.BytesIO()
        picture = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)
        Image.fromarray(picture).save(file, kind, **options)
        found.append(file.getvalue())
    return found


def _read_video(data: bytes, folder: Path) -> None:
    path = folder / "a.mp4"
    path.write_bytes(data)
    with open_clip(ClipRecord("a", str(path)), limits=LIMITS) as clip:
        clip.read([0, clip.num_frames - 1], transform=lambda frame: frame[:1, :1])


TARGETS = (
    Target("video", _videos, _read_video, weight=1),
    Target(
        "sound",
        _sounds,
        lambda data, folder: read_audio("a.wav", data=data, limits=LIMITS),
        weight=1,
    ),
    Target(
        "image",
        _images,
        lambda data, folder: read_image("a.png", data=data, limits=LIMITS),
        weight=4,
    ),
)
