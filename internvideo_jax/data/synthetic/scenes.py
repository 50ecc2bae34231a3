"""Short clips of one coloured shape that moves over a background, with a sound that follows it."""

import dataclasses
import functools
import os
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from internvideo_jax.files import atomic_file

Shape = Literal["circle", "square", "cross", "ring"]
Motion = Literal[
    "left", "right", "up", "down", "clockwise", "anticlockwise", "growing", "shrinking"
]
Background = Literal["plain", "gradient", "checkerboard"]
Voice = Literal["hum", "buzz", "beep"]

SAMPLE_RATE = 16_000

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 50, 47),
    "green": (70, 170, 60),
    "blue": (38, 100, 220),
    "yellow": (230, 200, 40),
    "magenta": (200, 60, 180),
    "cyan": (40, 190, 190),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a clip shows and sounds like. Lengths are fractions of the frame's side.

    Attributes:
      shape: outline of the object.
      color: name of its colour, a key of `COLORS`.
      motion: how it moves during the clip.
      background: what lies behind it.
      radius: half its extent; growing and shrinking objects have it in the middle of the clip.
      center: (x, y) of the middle of its path, y downwards.
      reach: half the length of a straight path, or the radius of a circular one.
      angle: where a circular path starts, in radians clockwise from the right.
      voice: what is heard besides the tone of the motion; nothing shows it.
    """

    shape: Shape
    color: str
    motion: Motion
    background: Background = "plain"
    radius: float = 0.18
    center: tuple[float, float] = (0.5, 0.5)
    reach: float = 0.25
    angle: float = 0.0
    voice: Voice | None = None


def render(scene: Scene, num_frames: int = 32, size: int = 112) -> np.ndarray:
    """Draws a scene.

    Args:
      scene: what to draw.
      num_frames: T, frames of the clip.
      size: side of the square frame in pixels.

    Returns:
      uint8 `[T, size, size, 3]`, RGB.
    """
    background = _background(scene.background, size)
    color = np.array(COLORS[scene.color], np.float32)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    frames = np.repeat(np.round(background).astype(np.uint8)[None], num_frames, axis=0)
    for frame, *pose in zip(frames, *_poses(scene, num_frames), strict=True):
        x, y, radius = map(np.float32, pose)
        # No shape is wider than its radius; half a pixel more for the soft edge.
        columns, rows = (_covered(axis, place, radius + 1 / size) for place in (x, y))
        distance = _signed_distance(
            scene.shape, axis[None, columns] - x, axis[rows, None] - y, radius
        )
        # One pixel of soft edge keeps slow motions visible after resizing.
        coverage = np.clip(np.float32(0.5) - distance * np.float32(size), 0, 1)[..., None]
        behind = background[rows, columns]
        frame[rows, columns] = np.round(behind + coverage * (color - behind))
    return frames


def soundtrack(scene: Scene, seconds: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """The sound of a scene: a tone that follows the motion, and the voice.

    The tone is low for large objects, an octave higher at the top of the frame than at the bottom,
    and louder to the right and for objects that have grown.

    Args:
      scene: what to hear.
      seconds: length.
      sample_rate: samples per second.

    Returns:
      float32 `[S]` in (-1, 1).
    """
    count = round(seconds * sample_rate)
    x, y, radius = _poses(scene, count)
    time = np.arange(count) / sample_rate
    pitch = 44 / scene.radius * 2 ** (1 - y)
    loudness = (0.15 + 0.3 * x) * radius / scene.radius
    sound = loudness * np.sin(2 * np.pi * np.cumsum(pitch) / sample_rate)
    match scene.voice:
        case "hum":
            sound += 0.15 * (np.sin(2 * np.pi * 90 * time) + 0.5 * np.sin(2 * np.pi * 180 * time))
        case "buzz":
            sound += 0.15 * (2 * (140 * time % 1) - 1)
        case "beep":
            sound += 0.15 * np.sin(2 * np.pi * 2400 * time) * (time * 8 % 1 < 0.5)
    return sound.astype(np.float32)


def write_video(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    fps: int = 25,
    sound: np.ndarray | None = None,
) -> None:
    """Encodes frames and sound as an mp4 file (H.264, AAC), which is whole or absent.

    Args:
      path: the file.
      frames: uint8 `[T, H, W, 3]`, H and W even.
      fps: frames per second.
      sound: float32 `[S]` at `SAMPLE_RATE`; None for a silent film.
    """
    import av

    # Two processes that write the same clip must not share a half-written file.
    with atomic_file(path) as partial, av.open(partial, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=Fraction(fps))
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.options = {"preset": "ultrafast", "crf": "20", "threads": "1"}
        audio: Any = None
        if sound is not None:
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            # The default search costs more than all the rest of the file.
            audio.options = {"aac_coder": "fast"}
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        if sound is not None:
            samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            samples.sample_rate = SAMPLE_RATE
            # Without it, the encoder's priming samples would count as sound.
            samples.pts = 0
            container.mux(audio.encode(samples))
            container.mux(audio.encode())


def _poses(scene: Scene, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places x and y and radii at `count` evenly spaced times from the first to the last frame."""
    phase = np.arange(count) / max(count - 1, 1)
    x, y = (np.full(count, place) for place in scene.center)
    radius = np.full(count, scene.radius)
    sweep = scene.reach * (2 * phase - 1)
    angle = scene.angle + 2 * np.pi * phase
    match scene.motion:
        case "right":
            x += sweep
        case "left":
            x -= sweep
        case "down":
            y += sweep
        case "up":
            y -= sweep
        case "clockwise":
            x += scene.reach * np.cos(angle)
            y += scene.reach * np.sin(angle)
        case "anticlockwise":
            x += scene.reach * np.cos(angle)
            y -= scene.reach * np.sin(angle)
        case "growing":
            radius *= 0.5 + phase
        case "shrinking":
            radius *= 1.5 - phase
    return x, y, radius


def _covered(axis: np.ndarray, place: np.float32, reach: np.float32) -> slice:
    """The pixels whose centres lie within `reach` of a place."""
    return slice(*np.searchsorted(axis, (place - reach, place + reach)))


def _signed_distance(
    shape: Shape, dx: np.ndarray, dy: np.ndarray, radius: np.float32
) -> np.ndarray:
    """Distance to the outline, negative inside, for offsets from the centre."""
    distance: np.ndarray
    match shape:
        case "circle":
            distance = np.hypot(dx, dy) - radius
        case "square":
            distance = np.maximum(np.abs(dx), np.abs(dy)) - np.float32(0.9) * radius
        case "ring":
            middle = np.float32(0.75) * radius
            distance = np.abs(np.hypot(dx, dy) - middle) - np.float32(0.25) * radius
        case "cross":
            ax, ay = np.abs(dx), np.abs(dy)
            arm = np.minimum(ax, ay) - np.float32(0.35) * radius
            distance = np.maximum(np.maximum(ax, ay) - radius, arm)
    return distance


@functools.lru_cache(maxsize=8)
def _background(kind: Background, size: int) -> np.ndarray:
    """Background `[size, size, 3]`, float32 0..255."""
    axis = np.linspace(0, 1, size, dtype=np.float32)
    gray: np.ndarray
    match kind:
        case "plain":
            gray = np.full((size, size), 40, np.float32)
        case "gradient":
            gray = 30 + 90 * (axis[None] + axis[:, None]) / 2
        case "checkerboard":
            cell = np.arange(size) * 8 // size
            gray = np.where((cell[None] + cell[:, None]) % 2, 90.0, 40.0).astype(np.float32)
    background = np.repeat(gray[..., None], 3, axis=2)
    background.setflags(write=False)
    return background
