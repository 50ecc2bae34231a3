"""The snippets of the documentation run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.models import VideoClassifierConfig
from tests.small_models import CLIP_ENCODER, clip_model

DOCS = Path(__file__).parents[1] / "docs"


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that snippets name, and a small model under the name of a released one."""
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "home"))
    made = clip_model(VideoClassifierConfig(CLIP_ENCODER, num_classes=400))
    saved_model.save(
        tmp_path / "home" / "models" / "internvideo2-b14-k400",
        "video_classifier",
        made.config,
        made.preprocessing,
        made.variables,
        classes=[f"action {number}" for number in range(400)],
    )
    for name, length in (("clip", 20), ("other", 12), ("long", 100)):
        frames = scenes.render(scenes.Scene("ring", "blue", "left"), length, size=48)
        scenes.write_video(tmp_path / f"{name}.mp4", frames)
    (tmp_path / "broken.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_api_page(folder, capsys):
    names = {}
    for snippet in snippets("api.md"):
        exec(compile(snippet, "api.md", "exec"), names)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^\d+\.\d%  action \d+$", printed, re.MULTILINE)) == 3
    assert "broken.mp4 expected a video file" in printed
    assert "(1, 400) (1, 16)" in printed
    assert "if the channels come first" in printed
    assert re.findall(r"^(\d\.\d) \d\.\d \[Score", printed, re.MULTILINE) == ["0.0", "1.0", "2.0"]
    assert names["feature"].shape == (16,)
    np.testing.assert_array_equal(names["features"][0], names["feature"])
