import typing

import av
import numpy as np
import pytest

from internvideo_jax.data import synthetic
from internvideo_jax.data.synthetic import Scene


def centre(frame, color):
    close = np.abs(frame.astype(int) - synthetic.COLORS[color]).max(-1) < 40
    rows, columns = np.nonzero(close)
    return columns.mean() / frame.shape[1], rows.mean() / frame.shape[0], close.mean()


@pytest.mark.parametrize("shape", typing.get_args(synthetic.Shape))
@pytest.mark.parametrize("motion", typing.get_args(synthetic.Motion))
def test_motion_moves_the_shape_as_named(shape, motion):
    frames = synthetic.render(Scene(shape, "red", motion, "checkerboard"), num_frames=9, size=64)
    assert frames.shape == (9, 64, 64, 3)
    assert frames.dtype == np.uint8
    x, y, area = zip(*(centre(f, "red") for f in frames), strict=True)
    expected = {
        "right": x[-1] - x[0] > 0.4,
        "left": x[0] - x[-1] > 0.4,
        "down": y[-1] - y[0] > 0.4,
        "up": y[0] - y[-1] > 0.4,
        "clockwise": y[2] - y[0] > 0.2 and x[0] - x[4] > 0.4,
        "anticlockwise": y[0] - y[2] > 0.2 and x[0] - x[4] > 0.4,
        "growing": area[-1] > 3 * area[0],
        "shrinking": area[0] > 3 * area[-1],
    }
    assert expected[motion]


def test_written_video_can_be_read_back(tmp_path):
    frames = synthetic.render(Scene("circle", "blue", "left"), num_frames=10, size=32)
    synthetic.write_video(tmp_path / "clip.mp4", frames, fps=10)
    with av.open(tmp_path / "clip.mp4") as container:
        read = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        assert float(container.streams.video[0].average_rate) == 10
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < 12
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
