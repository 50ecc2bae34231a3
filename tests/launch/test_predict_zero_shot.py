"""The command `predict` with a model that compares clips with texts."""

import json

import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.launch import predict
from internvideo_jax.models import VideoClassifierConfig
from tests.small_models import CLIP_ENCODER, clip_model, save_stage2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_stage2(tmp_path_factory.mktemp("stage2"))


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    frames = scenes.render(scenes.Scene("ring", "blue", "left"), 50, 48)
    scenes.write_video(path, frames)
    return path


@pytest.fixture
def classes(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("a red ring\na blue ring\na cross\n")
    return path


def test_clips_and_windows_are_named_by_any_classes(model, video, classes, tmp_path, capsys):
    options = [str(video), f"--model={model}", f"--classes={classes}", "--top=3"]
    assert predict.main([*options, f"--json={tmp_path / 'whole.json'}"]) == 0
    assert capsys.readouterr().out.count(" %  ") == 3
    content = json.loads((tmp_path / "whole.json").read_text())
    assert (content["num_classes"], content["prompts"]) == (3, ["{}"])
    (found,) = content["predictions"]
    assert {best["name"] for best in found["classes"]} == set(classes.read_text().splitlines())
    assert sum(best["probability"] for best in found["classes"]) == pytest.approx(1, abs=1e-5)

    options += ["--prompts=the {} moves", "--window=1", f"--json={tmp_path / 'windows.json'}"]
    assert predict.main(options) == 0
    content = json.loads((tmp_path / "windows.json").read_text())
    assert content["prompts"] == ["the {} moves"]
    assert [(p["start"], p["end"]) for p in content["predictions"]] == [(0, 1), (1, 2)]


def test_classes_must_be_named_and_prompts_are_for_texts(model, video, classes, tmp_path, capsys):
    assert predict.main([str(video), f"--model={model}"]) == 2
    assert "--classes: expected a file of what clips may show" in capsys.readouterr().err
    options = [str(video), f"--model={model}", f"--classes={classes}"]
    assert predict.main([*options, "--prompts=k4000"]) == 2
    assert "did you mean 'k400'" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("")
    assert predict.main([*options[:2], f"--classes={tmp_path / 'empty.txt'}"]) == 2
    assert "found an empty file" in capsys.readouterr().err
    made = clip_model(VideoClassifierConfig(CLIP_ENCODER, num_classes=3))
    saved_model.save(
        tmp_path / "m", "video_classifier", made.config, made.preprocessing, made.variables
    )
    assert predict.main([str(video), f"--model={tmp_path / 'm'}", "--prompts=k400"]) == 2
    assert "found VideoClassifier; leave it out" in capsys.readouterr().err
