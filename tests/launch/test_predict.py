"""The command `predict`."""

import csv
import json

import numpy as np
import pytest

import internvideo_jax as ivj
from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.launch import predict
from internvideo_jax.models import VideoClassifierConfig
from tests.processes import run_without_reader
from tests.small_models import CLIP_ENCODER, clip_model

CLASSES = ("going left", "going right", "an \x1b[31mescape")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A classifier with names and one without, and an encoder."""
    folder = tmp_path_factory.mktemp("models")
    made = clip_model(VideoClassifierConfig(CLIP_ENCODER, num_classes=3))
    parts = (made.config, made.preprocessing, made.variables)
    saved_model.save(folder / "named", "video_classifier", *parts, classes=CLASSES)
    saved_model.save(folder / "numbered", "video_classifier", *parts)
    encoder = clip_model(CLIP_ENCODER)
    saved_model.save(
        folder / "encoder", "video_vit", encoder.config, encoder.preprocessing, encoder.variables
    )
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of two short videos and a hidden one; a long video of several motions."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "short").mkdir()
    for motion in ("left", "right"):
        frames = scenes.render(scenes.Scene("ring", "blue", motion), 12, size=48)
        scenes.write_video(folder / "short" / f"{motion}.mp4", frames)
    (folder / "short" / "._left.mp4").write_text("no video")
    motions = ("left", "growing", "clockwise")
    parts = [scenes.render(scenes.Scene("ring", "red", motion), 25, size=48) for motion in motions]
    scenes.write_video(folder / "long.mp4", np.concatenate(parts))
    return folder


@pytest.fixture
def run(models, tmp_path):
    def call(*argv, model="named"):
        return predict.main([*map(str, argv), f"--model={models / model}"])

    return call


def test_a_folder_of_unlabelled_clips(run, models, videos, tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv")}
    options = [f"--{name}={path}" for name, path in files.items()]
    assert run(videos / "short", "--top=2", *options) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 6
    assert lines[0].endswith("short/left.mp4")
    assert "2 of 2 videos" in captured.err

    content = json.loads(files["json"].read_text())
    assert (content["num_classes"], content["windows"]) == (3, None)
    assert content["model"] == str(models / "named")
    sha256 = json.loads((models / "named" / "model.json").read_text())["sha256"]
    assert content["model_digest"] == sha256[:16]
    assert content["views"] == {"num_frames": 4, "image_size": 32, "segments": 1, "crops": 1}
    assert content["failed"] == []
    paths = [str(videos / "short" / f"{motion}.mp4") for motion in ("left", "right")]
    assert [entry["source"] for entry in content["predictions"]] == paths
    expected = ivj.load(models / "named").predict(paths, top=2)
    for entry, scores in zip(content["predictions"], expected, strict=True):
        assert (entry["start"], entry["end"]) == (None, None)
        assert [best["name"] for best in entry["classes"]] == [name for name, _ in scores]
        assert [CLASSES[best["class"]] for best in entry["classes"]] == [n for n, _ in scores]
        probabilities = [best["probability"] for best in entry["classes"]]
        np.testing.assert_allclose(probabilities, [p for _, p in scores], atol=1e-6)

    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2"] * 2
    assert [row["source"] for row in rows] == [paths[0]] * 2 + [paths[1]] * 2
    assert rows[0]["name"] == expected[0][0].name
    assert float(rows[0]["probability"]) == pytest.approx(expected[0][0].probability, abs=1e-6)


def test_files_are_written_although_nobody_reads_the_table(models, videos, tmp_path):
    files = {name: tmp_path / f"new/out.{name}" for name in ("json", "csv")}
    options = [f"--{name}={path}" for name, path in files.items()]
    model = f"--model={models / 'named'}"
    result = run_without_reader("predict", str(videos / "short"), model, *options)
    assert result.returncode == 0, result.stderr
    assert "Broken pipe" not in result.stderr
    assert len(json.loads(files["json"].read_text())["predictions"]) == 2
    assert files["csv"].read_text().count("left.mp4") == 3


def test_without_files_it_stops_where_nobody_reads_on(run, videos, monkeypatch, capsys):
    monkeypatch.setattr(predict.output, "has_reader", lambda: False)
    assert run(videos / "short") == 0
    assert "1 of 1 videos" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_no_file_is_overwritten(run, videos, tmp_path, capsys, option):
    kept = tmp_path / "kept"
    kept.write_text("results")
    assert run(videos / "short", f"{option}={kept}") == 2
    assert f"{option}={kept} exists" in capsys.readouterr().err
    assert kept.read_text() == "results"


def test_windows_of_a_long_video_with_a_timeline(run, videos, tmp_path, capsys):
    picture, table = tmp_path / "timeline.png", tmp_path / "out.json"
    code = run(
        videos / "long.mp4", "--window=1", "--stride=0.8", f"--plot={picture}", f"--json={table}"
    )
    assert code == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 5
    assert out[2].lstrip().startswith("0:00.8 - 0:01.8")
    content = json.loads(table.read_text())
    assert content["windows"] == {"length": 1.0, "stride": 0.8}
    times = [(entry["start"], entry["end"]) for entry in content["predictions"]]
    np.testing.assert_allclose(times, [(0, 1), (0.8, 1.8), (1.6, 2.6), (2, 3)])
    assert all(len(entry["classes"]) == 3 for entry in content["predictions"])
    assert picture.stat().st_size > 5000


def test_what_cannot_be_read_is_listed_and_the_others_go_on(run, videos, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    table = tmp_path / "out.json"
    for options in ([], ["--window=2"]):
        table.unlink(missing_ok=True)
        assert run(bad, videos / "short" / "left.mp4", *options, f"--json={table}") == 1
        captured = capsys.readouterr()
        assert "1 failed:" in captured.err
        assert str(bad) in captured.err
        content = json.loads(table.read_text())
        assert [entry["source"] for entry in content["failed"]] == [str(bad)]
        assert content["failed"][0]["reason"]
        assert len(content["predictions"]) == 1


def test_names_are_given_or_numbers(run, videos, tmp_path, capsys):
    clip = videos / "short" / "left.mp4"
    assert run(clip, model="numbered") == 0
    captured = capsys.readouterr()
    assert "--classes=FILE" in captured.err
    assert {line.split()[-1] for line in captured.out.splitlines()[1:]} == {"0", "1", "2"}
    names = tmp_path / "names.txt"
    names.write_text("zero\none\ntwo\n")
    assert run(clip, f"--classes={names}", model="numbered") == 0
    captured = capsys.readouterr()
    assert "--classes" not in captured.err
    assert {line.split()[-1] for line in captured.out.splitlines()[1:]} == {"zero", "one", "two"}
    names.write_text("zero\none\n")
    assert run(clip, f"--classes={names}") == 2
    assert "names of the model's 3 classes, found 2" in capsys.readouterr().err


def test_names_in_a_file_keep_the_order_of_the_models_own(run, videos, tmp_path, capsys):
    clip, names = videos / "short" / "left.mp4", tmp_path / "names.json"
    names.write_text(json.dumps([CLASSES[1], CLASSES[0], CLASSES[2]]))
    assert run(clip, f"--classes={names}") == 2
    assert f"'{CLASSES[0]}' as number 0, found '{CLASSES[1]}'" in capsys.readouterr().err
    names.write_text(json.dumps(["nach links", "nach rechts", "anders"]))
    assert run(clip, f"--classes={names}") == 0
    captured = capsys.readouterr()
    assert "'nach links' for 'going left'" in captured.err
    assert {line.split("%  ")[-1] for line in captured.out.splitlines()[1:]} == {
        *("nach links", "nach rechts", "anders")
    }
    assert run(clip, f"--classes={tmp_path / 'nope.txt'}") == 2
    assert "nope.txt: expected a file with the names" in capsys.readouterr().err


def test_terminals_get_no_control_characters(run, videos, capsys):
    assert run(videos / "short") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"an \x1b[31mescape" in out


def test_several_views_are_averaged(run, models, videos, tmp_path):
    clip, table = videos / "short" / "left.mp4", tmp_path / "out.json"
    assert run(clip, "--segments=2", "--crops=3", f"--json={table}") == 0
    content = json.loads(table.read_text())
    assert (content["views"]["segments"], content["views"]["crops"]) == (2, 3)
    expected = ivj.load(models / "named").predict(clip, segments=2, crops=3)
    found = content["predictions"][0]["classes"][0]["probability"]
    assert found == pytest.approx(expected[0].probability, abs=1e-6)


def test_frames_must_be_whole_tubelets(run, models, videos, capsys):
    clip = videos / "short" / "left.mp4"
    assert run(clip, "--frames=7") == 2
    assert "--frames" in (error := capsys.readouterr().err)
    assert "multiples of 2, the model's tubelet size, found 7; take 6 or 8" in error
    model = ivj.load(models / "named")
    for method in (model.predict, model.encode, model.preprocess):
        with pytest.raises(ValueError, match="num_frames.* multiples of 2.*found 1; take 2"):
            method(clip, num_frames=1)


def test_an_encoder_is_refused_and_extract_named(run, videos, capsys):
    assert run(videos / "short", model="encoder") == 2
    assert "internvideo-jax extract" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stride=1"], "--stride: expected --window"),
        (["--plot=x.png"], "--plot: expected --window"),
        (["--window=1", "--stride=2"], "nothing is left out"),
        (["--window=0"], "window of some seconds"),
        (["--window=nan"], "window of some seconds"),
        (["--window=1", "--plot=x.xyz"], "ends in one of .png"),
        (["--window=1", "--plot=x.png"], "expected one video"),
        (["--json=/dev/null/x.json"], "/dev/null is not a folder"),
        (
            ["--json=new/x", "--csv=new/y/../x"],
            "--csv=new/y/../x: expected another file than --json",
        ),
        (["--json=new/x", "--csv=new/x/y"], "--csv=new/x/y: expected another file than --json"),
        (["--window=1", "--json=x.png", "--plot=x.png"], "another file than --json"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_work(
    run, videos, monkeypatch, capsys, options, message
):
    monkeypatch.setattr(predict.inference, "load_model", lambda args: pytest.fail("loaded"))
    assert run(videos / "short", *options) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_model_is_told_the_nearest_name(videos, capsys):
    code = predict.main([str(videos / "short"), "--model=internvideo2-b14-k40"])
    assert code == 2
    assert "did you mean 'internvideo2-b14-k400'" in capsys.readouterr().err
