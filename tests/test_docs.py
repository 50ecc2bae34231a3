"""The snippets of the documentation run as they stand."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.launch.main import main
from internvideo_jax.models import VideoClassifierConfig, abstract_variables, build
from internvideo_jax.preprocessing import AudioPreprocessing, Preprocessing, VideoPreprocessing
from tests.small_models import (
    CLIP_ENCODER,
    STAGE2,
    TOWERS,
    clip_model,
    noise_like,
    save_clip,
    save_stage2,
    save_viclip,
)

DOCS = Path(__file__).parents[1] / "docs"


def run(page, changes=(), **names):
    """The names that the snippets of a page leave, where some texts are replaced by others."""
    text = (DOCS / page).read_text()
    for old, new in changes:
        text = text.replace(old, new)
    for snippet in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(snippet, page, "exec"), names)
    return names


def commands(page):
    """The arguments of the commands that a page shows with what they print."""
    blocks = re.findall(r"^```console\n(.*?)^```", (DOCS / page).read_text(), re.M | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]


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
    demo = tmp_path / "home" / "demo" / "training" / "full-0" / "stage_2"
    demo.mkdir(parents=True)
    save_stage2(demo)
    for name, length in (("clip", 20), ("other", 12), ("long", 100)):
        frames = scenes.render(scenes.Scene("ring", "blue", "left"), length, size=48)
        scenes.write_video(tmp_path / f"{name}.mp4", frames)
    (tmp_path / "broken.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_api_page(folder, capsys):
    names = run("api.md")
    printed = capsys.readouterr().out
    assert len(re.findall(r"^\d+\.\d%  action \d+$", printed, re.MULTILINE)) == 3
    assert "broken.mp4 expected a video file" in printed
    assert "(1, 400) (1, 16)" in printed
    assert "if the channels come first" in printed
    assert re.findall(r"^(\d\.\d) \d\.\d \[Score", printed, re.MULTILINE) == ["0.0", "1.0", "2.0"]
    assert "1 of 2 clips failed:\n  broken.mp4: expected a video file" in printed
    assert names["feature"].shape == (16,)
    assert names["video"].shape[0] == 2
    assert names["best"].shape == (2,)
    assert {name for name, _ in names["looks"]} == {"a red square", "a blue ring"}
    assert np.isfinite(names["logits"]).sum(axis=0).tolist() == [1, 1]
    np.testing.assert_array_equal(names["features"][0], names["feature"])


@pytest.mark.slow
def test_the_readme(folder, capsys):
    frames = np.zeros((30, 48, 64, 3), np.uint8)
    names = run("../README.md", [("a.mp4", "clip.mp4")], frames_array=frames)
    assert names["scores"].shape == (2, 2)
    assert names["logits"].shape == (1, 400)
    assert len(re.findall(r"^\d+\.\d%  action \d+$", capsys.readouterr().out, re.MULTILINE)) == 3


@pytest.mark.slow
def test_the_page_on_towers(folder):
    configs = {**TOWERS, "stage2": STAGE2["visual"]}
    encoder = configs["stage2"].vision.encoder
    for name, preprocessing in {
        "bert": Preprocessing(),
        "beats": Preprocessing(audio=AudioPreprocessing(num_mels=8, num_frames=21)),
        "llama_text": Preprocessing(),
        "stage2": Preprocessing(
            VideoPreprocessing(image_size=encoder.image_size, num_frames=encoder.num_frames)
        ),
    }.items():
        variables = noise_like(abstract_variables(build(configs[name])), 0)
        path = folder / "models" / name.removesuffix("_text")
        saved_model.save(path, name, configs[name], preprocessing, variables)
    save_viclip(folder).rename(folder / "models" / "viclip")
    scene = scenes.Scene("ring", "blue", "left")
    sound = scenes.soundtrack(scene, 0.1)
    scenes.write_video(folder / "clip.mp4", scenes.render(scene, 5, size=48), sound=sound)
    names = run("towers.md")
    assert names["words"].shape == (1, 5, 20)
    assert names["cosines"].shape == (2, 2)
    assert names["match"].shape == (2,)
    assert names["scores"].shape == (1, 2)
    assert names["masked"].shape == (1, 6)
    np.testing.assert_allclose(names["feature"], names["sound"].pooled[0], atol=1e-5)


@pytest.mark.slow
def test_the_page_on_clip(folder):
    scene = scenes.Scene("ring", "blue", "left")
    scenes.write_video(folder / "clip.mp4", scenes.render(scene, 5, size=48))
    (folder / "models").mkdir()
    save_clip(folder).rename(folder / "models" / "clip")
    names = run("clip.md")
    assert names["ids"].shape == (2, 16)
    assert names["cosines"].shape == names["probabilities"].shape == (1, 2)


@pytest.mark.slow
def test_the_page_on_retrieval(folder, capsys):
    (folder / "models").mkdir()
    save_stage2(folder).rename(folder / "models" / "stage2")
    items = []
    for color in ("red", "green", "blue"):
        path = folder / "videos" / f"{color}.mp4"
        path.parent.mkdir(exist_ok=True)
        scenes.write_video(path, scenes.render(scenes.Scene("ring", color, "left"), 9, size=48))
        items.append({"video": path.name, "caption": f"a {color} ring"})
    (folder / "list.json").write_text(json.dumps(items))
    names = run("retrieval.md")
    assert names["best"].shape == (3,)
    printed = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[0] for line in printed[1:]] == [
        f"a {color} ring" for color in ("red", "green", "blue")
    ]
    assert float(printed[0]) in (0, pytest.approx(100 / 3), pytest.approx(200 / 3), 100)


@pytest.mark.slow
def test_the_page_on_search(folder, capsys):
    model = save_stage2(folder)
    arguments = [f"--model={model}", "--output=videos.index", "--window=1"]
    assert main(["index", "long.mp4", "clip.mp4", *arguments]) == 0
    names = run("search.md")
    assert 2 <= len(names["moments"]) <= 3
    assert capsys.readouterr().out.count(".mp4 ") == len(names["moments"])


@pytest.mark.slow
def test_the_page_on_zero_shot_classification(folder, capsys):
    (folder / "models").mkdir()
    save_stage2(folder).rename(folder / "models" / "stage2")
    run("zero_shot.md")
    assert re.fullmatch(r"(\d+\.\d%  a (red|blue) ring\n){2}", capsys.readouterr().out)


# For an encoder that learns nothing in no time.
LITTLE = (
    "--config.stage.model.encoder.width=32",
    "--config.stage.model.encoder.depth=1",
    "--config.stage.model.encoder.mlp_dim=32",
    "--config.train.epochs=1",
    "--config.train.batch_size=8",
)


@pytest.mark.slow
def test_the_page_on_your_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("your_classes.md", [("train=300", "train=32"), ("test=120", "test=32")])
    shown = commands("your_classes.md")
    assert [command[1] for command in shown] == ["train", "predict", "evaluate", "train", "train"]
    for program, name, *options in shown:
        assert program == "internvideo-jax"
        little = LITTLE if name == "train" else ()
        assert main([name, *options, *little]) == 0, options
    printed = capsys.readouterr().out
    motions = {path.name for path in Path("clips/train").iterdir()}
    named = re.findall(r"^ +\d+\.\d %  (\w+)$", printed, re.MULTILINE)
    assert len(named) == 6
    assert set(named) <= motions
    table = Path("result/per_class.csv").read_text().splitlines()[1:]
    assert {row.split(",")[1] for row in table} == motions
    assert "--config.data.validation_share=0.0" in printed
