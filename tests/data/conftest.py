"""Tiny videos whose every frame shows its own number, so that no mix-up goes unseen."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

WIDTH, HEIGHT, BLOCK = 64, 48, 8


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where lists are kept: no test finds those of another one."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("INTERNVIDEO_HOME", str(folder))
    return folder / "lists"


def _picture(number: int) -> np.ndarray:
    """Bits of the number as black and white blocks along the top, over moving stripes."""
    columns = (np.arange(WIDTH) + 3 * number) % 32 * 6
    image = np.broadcast_to(columns[None, :, None], (HEIGHT, WIDTH, 3)).astype(np.uint8).copy()
    image[HEIGHT // 2 :, :, 1] = 255 - image[HEIGHT // 2 :, :, 1]
    for bit in range(WIDTH // BLOCK):
        image[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return image


@pytest.fixture(scope="session")
def picture_of() -> Callable[[int], np.ndarray]:
    """Makes the frame that shows a number."""
    return _picture


@pytest.fixture(scope="session")
def number_of() -> Callable[[np.ndarray], int]:
    """Reads the number off a decoded frame."""

    def read(image: np.ndarray) -> int:
        centres = image[BLOCK // 2, BLOCK // 2 :: BLOCK].mean(-1)
        return sum(1 << bit for bit, value in enumerate(centres) if value > 127)

    return read


@pytest.fixture(scope="session")
def render() -> Callable[..., Path]:
    """Writes a video of numbered frames; skips where the encoder is missing."""

    def write(
        path: Path,
        codec: str = "libx264",
        *,
        num_frames: int = 30,
        options: Mapping[str, str] | None = None,
        container_options: Mapping[str, str] | None = None,
        pix_fmt: str = "yuv420p",
        fps: int = 10,
        pts: Sequence[int] | None = None,
        picture: Callable[[int], np.ndarray] = _picture,
        rotation: tuple[float, bool, bool] | None = None,
    ) -> Path:
        if codec not in av.codecs_available:
            pytest.skip(f"PyAV was built without {codec}")
        with av.open(path, "w", options=dict(container_options or {})) as container:
            stream = container.add_stream(codec, rate=fps, options=dict(options or {}))
            stream.pix_fmt = pix_fmt
            stream.height, stream.width = picture(0).shape[:2]
            if rotation is not None:
                stream.set_display_rotation(*rotation)
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                frame = frame.reformat(format=pix_fmt)
                frame.pts = number if pts is None else pts[number]
                frame.time_base = Fraction(1, fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def remux() -> Callable[..., Path]:
    """Copies packets into another container; `change` may edit or (None) drop one."""

    def copy(
        source: Path,
        target: Path,
        change: Callable[[int, av.Packet], av.Packet | None] = lambda number, packet: packet,
        container_options: Mapping[str, str] | None = None,
    ) -> Path:
        with (
            av.open(source) as reader,
            av.open(target, "w", options=dict(container_options or {})) as writer,
        ):
            stream = reader.streams.video[0]
            copied = writer.add_stream_from_template(stream)
            packets = (packet for packet in reader.demux(stream) if packet.size)
            for number, packet in enumerate(packets):
                if (changed := change(number, packet)) is not None:
                    changed.stream = copied
                    writer.mux(changed)
        return target

    return copy


@pytest.fixture(scope="session")
def overwritten() -> Callable[..., bytes]:
    """The bytes of a file with those of some of its packets overwritten."""

    def damage(
        path: Path,
        choose: Callable[[list[av.Packet]], Sequence[av.Packet]],
        stream: str = "video",
        byte: bytes = b"\0",
    ) -> bytes:
        with av.open(path) as container:
            packets = [p for p in container.demux(**{stream: 0}) if p.size]
        data = bytearray(path.read_bytes())
        for packet in choose(packets):
            data[packet.pos : packet.pos + packet.size] = byte * packet.size
        return bytes(data)

    return damage


@pytest.fixture(scope="session")
def h264(tmp_path_factory: pytest.TempPathFactory, render: Callable[..., Path]) -> Path:
    """mp4 with B-frames that serve as references, and open groups of pictures."""
    options = {"bf": "3", "g": "8", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"}
    return render(tmp_path_factory.mktemp("h264") / "h264.mp4", options=options)
