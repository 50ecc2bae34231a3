import typing

import av
import numpy as np
import pytest

from internvideo_jax.data.decode.audio import read_audio
from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.data.synthetic.scenes import Scene


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


def test_objects_are_where_and_as_large_as_stated_in_the_middle_of_the_clip():
    for motion in ("left", "up", "growing"):
        scene = Scene("square", "blue", motion, radius=0.2, center=(0.4, 0.6))
        x, y, area = centre(synthetic.render(scene, num_frames=5, size=100)[2], "blue")
        assert (x, y) == pytest.approx((0.4, 0.6), abs=0.01)
        assert area == pytest.approx((2 * 0.9 * 0.2) ** 2, rel=0.05)


def test_objects_are_cut_off_at_the_edge_of_the_frame():
    scene = Scene("circle", "cyan", "right", center=(0.5, 0.02), reach=0.5, radius=0.1)
    frames = synthetic.render(scene, num_frames=3, size=40)
    shares = [centre(frame, "cyan")[2] for frame in frames]
    assert 0 < shares[0] < shares[1] < np.pi * 0.1**2


def tone(sound, begin, end):
    """Strongest frequency in Hz between two times."""
    part = sound[int(begin * 16_000) : int(end * 16_000)]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
    return spectrum[1:].argmax().item() + 1, spectrum.max()


def test_the_tone_follows_the_motion():
    def heard(motion, **fields):
        sound = synthetic.soundtrack(Scene("circle", "red", motion, **fields), 1.0)
        assert sound.dtype == np.float32
        assert np.abs(sound).max() < 1
        (first, _), (last, _) = tone(sound, 0, 0.2), tone(sound, 0.8, 1)
        loud = [np.square(sound[a:b]).mean() for a, b in ((0, 3200), (-3200, None))]
        return last / first, loud[1] / loud[0]

    assert heard("up")[0] > 1.2 > 0.9 > heard("down")[0]
    assert heard("right")[1] > 1.5 > 0.7 > heard("left")[1]
    assert heard("growing")[1] > 3 > 0.3 > heard("shrinking")[1]
    assert heard("right")[0] == pytest.approx(1, abs=0.05)
    low, high = (
        tone(synthetic.soundtrack(Scene("ring", "red", "left", radius=r), 1.0), 0, 1)[0]
        for r in (0.25, 0.14)
    )
    assert high / low == pytest.approx(0.25 / 0.14, rel=0.05)


def test_voices_differ_and_show_in_the_sound_alone():
    scenes = [Scene("ring", "red", "left", voice=voice) for voice in ("hum", "buzz", "beep", None)]
    sounds = [synthetic.soundtrack(scene, 0.5) for scene in scenes]
    for i, one in enumerate(sounds):
        for other in sounds[:i]:
            assert np.abs(one - other).mean() > 0.02
    pictures = [synthetic.render(scene, 2, 16) for scene in scenes]
    assert all(np.array_equal(pictures[0], picture) for picture in pictures)


def test_written_video_can_be_read_back(tmp_path):
    scene = Scene("circle", "blue", "left")
    frames = synthetic.render(scene, num_frames=10, size=32)
    sound = synthetic.soundtrack(scene, 1.0)
    synthetic.write_video(tmp_path / "clip.mp4", frames, fps=10, sound=sound)
    with av.open(tmp_path / "clip.mp4") as container:
        read = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        assert float(container.streams.video[0].average_rate) == 10
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < 12
    heard = read_audio(tmp_path / "clip.mp4")
    assert np.corrcoef(heard[: len(sound)], sound[: len(heard)])[0, 1] > 0.99
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    synthetic.write_video(tmp_path / "clip.mp4", frames)
    with av.open(tmp_path / "clip.mp4") as container:
        assert not container.streams.audio
