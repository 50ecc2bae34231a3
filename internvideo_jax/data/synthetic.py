"""A small synthetic world: short clips of one coloured shape moving over a background."""

import dataclasses
import os
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

Shape = Literal["circle", "square", "cross", "ring"]
Motion = Literal[
    "left", "right", "up", "down", "clockwise", "anticlockwise", "growing", "shrinking"
]
Background = Literal["plain", "gradient", "checkerboard"]

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
    """What a clip shows.

    Attributes:
      shape: outline of the object.
      color: name of its colour, a key of `COLORS`.
      motion: how it moves during the clip.
      background: what lies behind it.
      radius: half its extent, as a fraction of the frame's side.
    """

    shape: Shape
    color: str
    motion: Motion
    background: Background = "plain"
    radius: float = 0.18


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
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    for t in range(num_frames):
        x, y, radius = _pose(scene, t / max(num_frames - 1, 1))
        # One pixel of soft edge keeps slow motions visible after resizing.
        coverage = np.clip(
            0.5 - _signed_distance(scene.shape, axis[None] - x, axis[:, None] - y, radius) * size,
            0,
            1,
        )[..., None]
        frames[t] = np.round(background + coverage * (color - background))
    return frames


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: int = 25) -> None:
    """Encodes uint8 frames `[T, H, W, 3]` as an H.264 mp4 file (H and W even)."""
    import av

    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with av.open(partial, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "20"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    partial.rename(path)


def _pose(scene: Scene, phase: float) -> tuple[float, float, float]:
    """Centre (x, y) and radius at `phase` in [0, 1] of the clip, as fractions of the side."""
    sweep = 0.25 + 0.5 * phase
    angle = 2 * np.pi * phase
    match scene.motion:
        case "right":
            return sweep, 0.5, scene.radius
        case "left":
            return 1 - sweep, 0.5, scene.radius
        case "down":
            return 0.5, sweep, scene.radius
        case "up":
            return 0.5, 1 - sweep, scene.radius
        case "clockwise":
            return 0.5 + 0.25 * np.cos(angle), 0.5 + 0.25 * np.sin(angle), scene.radius
        case "anticlockwise":
            return 0.5 + 0.25 * np.cos(angle), 0.5 - 0.25 * np.sin(angle), scene.radius
        case "growing":
            return 0.5, 0.5, scene.radius * (0.6 + 1.2 * phase)
        case "shrinking":
            return 0.5, 0.5, scene.radius * (1.8 - 1.2 * phase)


def _signed_distance(shape: Shape, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Distance to the outline, negative inside, for offsets from the centre."""
    match shape:
        case "circle":
            return np.hypot(dx, dy) - radius
        case "square":
            return np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
        case "ring":
            return np.abs(np.hypot(dx, dy) - 0.75 * radius) - 0.25 * radius
        case "cross":
            ax, ay = np.abs(dx), np.abs(dy)
            inside = np.maximum(np.maximum(ax, ay), 0) - radius
            return np.maximum(inside, np.minimum(ax, ay) - 0.35 * radius)


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
    return np.repeat(gray[..., None], 3, axis=2)
