"""Windows of many files in batches that are full."""

import threading

import numpy as np
import pytest

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.video import VideoError, VideoReader
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.data.transforms.sampling import uniform_indices
from internvideo_jax.data.windows import OpenVideo, Windows, window_batches
from internvideo_jax.data.windows_of_files import windows_of_files

CONFIG = DataConfig(num_frames=4, image_size=32)
WINDOWS = Windows(0.4, 0.4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three, one, no and two windows."""
    folder = tmp_path_factory.mktemp("videos")
    for name, color, length in (("a", "red", 25), ("b", "blue", 6), ("d", "green", 20)):
        frames = scenes.render(scenes.Scene("ring", color, "left"), length, size=48)
        scenes.write_video(folder / f"{name}.mp4", frames)
    (folder / "c.mp4").write_text("no video")
    return [folder / f"{name}.mp4" for name in "abcd"]


def rows_of(batches):
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_batches_hold_windows_of_several_files(videos):
    batches = list(windows_of_files(videos, CONFIG, WINDOWS, batch_size=3))
    assert [len(batch["index"]) for batch in batches] == [3, 3, 1]
    rows = rows_of(batches)
    assert rows["file"].tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert rows["index"].tolist() == [0, 1, 2, 0, 0, 0, 1]
    assert rows["valid"].tolist() == [True] * 4 + [False] + [True] * 2
    assert rows["error"][4].startswith("expected a video file")
    assert np.isnan([rows["start"][4], rows["end"][4]]).all()
    for number in (0, 1, 3):
        own = rows_of(window_batches(videos[number], CONFIG, WINDOWS, batch_size=8))
        for name, column in own.items():
            np.testing.assert_array_equal(rows[name][rows["file"] == number], column)


def test_frames_and_their_times_are_told(videos):
    rows = rows_of(windows_of_files(videos[:1], CONFIG, WINDOWS, batch_size=8))
    assert rows["frame_indices"].shape == (3, 4)
    assert rows["frame_indices"][1].tolist() == (10 + uniform_indices(10, 4)).tolist()
    np.testing.assert_allclose(rows["timestamps"], rows["frame_indices"] / 25)


def test_views_of_a_window_follow_each_other(videos):
    config = DataConfig(num_frames=4, image_size=32, crops=3)
    rows = rows_of(windows_of_files(videos, config, WINDOWS, batch_size=4))
    assert rows["file"].tolist() == [0] * 9 + [1] * 3 + [2] * 3 + [3] * 6
    assert rows["frame_indices"].shape == (21, 4)


@pytest.mark.parametrize("first", [1, 2])
def test_loading_starts_anew_anywhere(videos, first):
    batches = windows_of_files(videos, CONFIG, WINDOWS, batch_size=3, num_threads=2)
    expected = list(windows_of_files(videos, CONFIG, WINDOWS, batch_size=3))[first:]
    found = list(batches._make(first))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_file_is_closed_when_it_has_been_read(videos, monkeypatch):
    closed = []
    close = OpenVideo.close
    monkeypatch.setattr(OpenVideo, "close", lambda self: closed.append(self) or close(self))
    batches = windows_of_files([videos[0]] * 50, CONFIG, WINDOWS, batch_size=3, num_threads=1)
    for _ in range(20):
        next(batches)
    assert 18 <= len(closed) < 40
    batches.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("windows", "data-loader"))]


def test_a_disk_that_fails_costs_the_windows_it_had(videos, monkeypatch):
    read = VideoReader.read

    def failing(self, indices, **options):
        if 10 <= min(indices) < 15:
            raise OSError(5, "Input/output error")
        return read(self, indices, **options)

    monkeypatch.setattr(VideoReader, "read", failing)
    rows = rows_of(windows_of_files(videos[:2], CONFIG, WINDOWS, batch_size=1))
    assert rows["error"].tolist() == ["", "Input/output error", "", ""]
    assert rows["start"][1] == pytest.approx(0.4)


def test_no_files_give_no_batches():
    assert list(windows_of_files([], CONFIG, WINDOWS, batch_size=3)) == []
    with pytest.raises(VideoError):
        next(window_batches("none.mp4", CONFIG, WINDOWS, batch_size=3))
