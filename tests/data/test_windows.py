"""Windows of long videos."""

import threading

import numpy as np
import pytest

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.video import VideoError, VideoReader
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.data.transforms.frames import eval_frame
from internvideo_jax.data.transforms.sampling import uniform_indices
from internvideo_jax.data.windows import Windows, window_batches

CONFIG = DataConfig(num_frames=4, image_size=32)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """4 seconds at 25 frames per second."""
    path = tmp_path_factory.mktemp("video") / "long.mp4"
    scenes.write_video(path, scenes.render(scenes.Scene("ring", "blue", "left"), 100, size=48))
    return path


def rows_of(*args, **options):
    batches = list(window_batches(*args, **options))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize(
    ("length", "stride", "expected"),
    [
        (1, 1, [[0, 1], [1, 2], [2, 3], [3, 4]]),
        (1.5, 1.5, [[0, 1.5], [1.5, 3], [2.5, 4]]),
        (2, 1, [[0, 2], [1, 3], [2, 4]]),
        (4, 1, [[0, 4]]),
        (9, 9, [[0, 4]]),
    ],
)
def test_windows_cover_the_video_and_the_last_ends_with_it(length, stride, expected):
    np.testing.assert_allclose(Windows(length, stride).times(0.0, 4.0), expected)
    shifted = Windows(length, stride).times(0.5, 4.5)
    np.testing.assert_allclose(shifted, np.array(expected) + 0.5)


def test_rounding_makes_no_further_window():
    for stride in (0.1, 0.3, 0.7):
        assert len(Windows(stride, stride).times(0.0, 21 * stride)) == 21


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [
        (0, 1, "window"),
        (-1, -1, "window"),
        (float("nan"), 1, "window"),
        (float("inf"), 1, "window"),
        (2, 3, r"at most the window's 2 s, so that nothing is left out, found 3"),
        (2, 0, "stride above 0"),
        (2, float("nan"), "stride above 0"),
        ("2", 1.0, "length: expected a number of seconds, found '2'"),
        (2.0, None, "stride: expected a number of seconds, found None"),
    ],
)
def test_lengths_that_are_no_windows(length, stride, message):
    with pytest.raises(ValueError, match=message):
        Windows(length, stride)


def test_a_window_shows_its_own_frames(video):
    rows = rows_of(video, CONFIG, Windows(1.5, 1.5), batch_size=2)
    assert rows["index"].tolist() == [0, 1, 2]
    assert rows["start"].tolist() == [0, 1.5, 2.5]
    assert rows["valid"].all()
    with VideoReader(video) as reader:
        # From 1.5 s, in the middle of frame 37, to 3 s.
        indices = 37 + uniform_indices(38, 4)
        expected = reader.read(indices, transform=lambda frame: eval_frame(frame, 32))
    np.testing.assert_array_equal(rows["video"][1], expected)


def test_windows_have_several_views(video):
    views = DataConfig(num_frames=4, image_size=32, segments=2, crops=3)
    rows = rows_of(video, views, Windows(2, 2), batch_size=4)
    assert rows["index"].tolist() == [0] * 6 + [1] * 6
    assert rows["video"].shape == (12, 4, 32, 32, 3)
    # Two choices of frames of a moving thing.
    assert (rows["video"][0] != rows["video"][3]).any()


def test_a_file_is_indexed_once_and_no_frame_of_a_batch_decoded_twice(video, monkeypatch):
    opened, asked = [], []
    init, read = VideoReader.__init__, VideoReader.read

    def counting_init(self, *args, **options):
        opened.append(self)
        init(self, *args, **options)

    def counting_read(self, indices, **options):
        asked.append(list(indices))
        return read(self, indices, **options)

    monkeypatch.setattr(VideoReader, "__init__", counting_init)
    monkeypatch.setattr(VideoReader, "read", counting_read)
    rows = rows_of(video, CONFIG, Windows(0.5, 0.25), batch_size=8, num_threads=1)
    assert len(rows["index"]) == 15
    assert [len(indices) for indices in asked] == [32, 28]
    assert len(opened) == 1


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_nothing_and_end_with_the_iterator(video, num_threads):
    rows = rows_of(video, CONFIG, Windows(0.5, 0.25), batch_size=8, num_threads=1)
    batches = window_batches(
        video, CONFIG, Windows(0.5, 0.25), batch_size=1, num_threads=num_threads
    )
    for number in range(10):
        batch = next(batches)
        assert batch["index"].tolist() == [number]
        np.testing.assert_array_equal(batch["video"][0], rows["video"][number])
    batches.close()
    # While the other threads are at their files.
    for number in range(8):
        batches = window_batches(
            video, CONFIG, Windows(0.5, 0.25), batch_size=1, num_threads=num_threads
        )
        for _ in range(number):
            next(batches)
        batches.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("windows", "data-loader"))]


def test_a_damaged_frame_costs_its_own_windows(video, monkeypatch):
    read = VideoReader.read

    def damaged(self, indices, **options):
        if max(indices) >= 30 and min(indices) < 50:
            raise VideoError(str(video), "frames", "frame 40 damaged", "copy it again")
        return read(self, indices, **options)

    monkeypatch.setattr(VideoReader, "read", damaged)
    rows = rows_of(video, CONFIG, Windows(1, 1), batch_size=8)
    assert rows["valid"].tolist() == [True, False, True, True]
    assert "frame 40 damaged" in rows["error"][1]
    assert not rows["video"][1].any()


def test_what_is_no_video(tmp_path):
    with pytest.raises(VideoError, match="No such file"):
        next(window_batches(tmp_path / "none.mp4", CONFIG, Windows(1, 1), batch_size=8))


def test_a_stride_is_at_least_a_frame(video):
    with pytest.raises(ValueError, match=r"at least a frame \(0.04 s\), found 1e-09"):
        next(window_batches(video, CONFIG, Windows(1, 1e-9), batch_size=8))
