"""Some clips are read to tell whether they can be."""

import numpy as np
import pytest

from internvideo_jax.data import trial
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.examples import BrokenClips, EvalExamples
from internvideo_jax.data.trial import try_clips


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A list of 1,000 clips, every tenth of which is broken; the indices of those that are read."""
    indices = []

    def examples(self, index):
        indices.append(index)
        return {"error": np.array(["broken" if index % 10 == 0 else ""])}

    monkeypatch.setattr(EvalExamples, "__call__", examples)
    (tmp_path / "clips.csv").write_text("".join(f"{i}.mp4,{i}\n" for i in range(1000)))
    return tmp_path / "clips.csv", indices


def test_clips_all_over_the_list_are_tried(read):
    path, indices = read
    result = try_clips(DataConfig(annotations=str(path)), ("video",), max_clips=200)
    assert sorted(indices) == list(range(0, 1000, 5))
    assert (result.tried, result.total, len(result.unreadable)) == (200, 1000, 100)
    assert result.unreadable[str(path.parent / "10.mp4")] == "broken"


def test_trying_ends_in_time(read, monkeypatch):
    path, indices = read
    clock = iter(range(100))
    monkeypatch.setattr(trial.time, "monotonic", lambda: next(clock))
    result = try_clips(DataConfig(annotations=str(path)), ("video",), seconds=9.5)
    assert result.tried == len(indices) == 10
    # Not only the beginning of the list.
    assert max(indices) > 500 > min(indices)


def test_clips_none_of_which_can_be_read_are_an_error(read, tmp_path):
    path, _ = read
    path.write_text("0.mp4,0\n")
    with pytest.raises(BrokenClips, match=r"0\.mp4: broken"):
        try_clips(DataConfig(annotations=str(path)), ("video",))
