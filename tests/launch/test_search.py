"""The commands `index` and `search`."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.launch import index, search
from tests.small_models import CLIP_ENCODER, clip_model, save_stage2

SHARED = os.environ.get("INTERNVIDEO_SHARED")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_stage2(tmp_path_factory.mktemp("stage2"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, motions in (("long", ("left", "up", "right")), ("short", ("down",))):
        parts = [scenes.render(scenes.Scene("ring", "red", m), 25, 48) for m in motions]
        scenes.write_video(folder / f"{name}.mp4", np.concatenate(parts))
    return folder


@pytest.fixture(scope="module")
def made(model, videos, tmp_path_factory):
    """An index of windows of a second: three of the long video, one of the short."""
    path = tmp_path_factory.mktemp("index") / "videos.index"
    assert index.main([str(videos), f"--model={model}", f"--output={path}", "--window=1"]) == 0
    return path


def test_texts_find_moments(made, videos, tmp_path, capsys):
    table, picture = tmp_path / "found.json", tmp_path / "found.png"
    texts = ["the red ring moves left", "a \x1b[31m circle"]
    assert search.main([str(made), *texts, "--top=3", f"--json={table}", f"--sheet={picture}"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == texts[0]
    # Of the three windows that follow each other, the best and one that it does not touch at most.
    assert lines.count(texts[0]) == 1
    assert "\x1b" not in captured.out
    assert "4 windows of 2 videos in " in captured.err
    content = json.loads(table.read_text())
    assert (content["windows"], content["videos"], content["is_exact"]) == (4, 2, True)
    assert [query["query"] for query in content["queries"]] == texts
    for query in content["queries"]:
        scores = [moment["score"] for moment in query["moments"]]
        assert scores == sorted(scores, reverse=True)
        assert 2 <= len(scores) <= 3
        sources = {moment["source"] for moment in query["moments"]}
        assert sources == {str(videos / "long.mp4"), str(videos / "short.mp4")}
    best = content["queries"][0]["moments"][0]
    assert f"  {best['score']:6.3f}  " in lines[1]
    assert picture.stat().st_size > 5000


def test_a_clip_finds_itself(made, videos, tmp_path):
    table = tmp_path / "found.json"
    clip = videos / "short.mp4"
    assert search.main([str(made), f"--clip={clip}", "--top=1", f"--json={table}"]) == 0
    (query,) = json.loads(table.read_text())["queries"]
    assert query["kind"] == "clip"
    (moment,) = query["moments"]
    assert (moment["source"], moment["start"], moment["end"]) == (str(clip), 0.0, 1.0)
    assert moment["score"] == pytest.approx(1, abs=1e-5)


def test_an_index_is_brought_up_to_date_with_its_own_options(made, videos, tmp_path, capsys):
    path, folder = tmp_path / "videos.index", tmp_path / "more"
    path.write_bytes(made.read_bytes())
    folder.mkdir()
    (folder / "again.mp4").symlink_to(videos / "short.mp4")
    (folder / "bad.mp4").write_text("no video")
    assert index.main([str(folder), f"--output={path}"]) == 1
    captured = capsys.readouterr()
    assert "2 videos to read, 2 are in the index and stay, 0 are gone" in captured.err
    assert "bad.mp4" in captured.err
    assert captured.out.startswith("1 new windows in ")
    assert ": 5 of 3 videos -> " in captured.out
    (folder / "bad.mp4").unlink()
    assert index.main([str(folder), f"--output={path}"]) == 0
    assert "0 videos to read, 3 are in the index and stay" in capsys.readouterr().err
    assert index.main([str(folder), f"--output={path}", "--window=0.5"]) == 2
    assert "window: expected 1.0, found 0.5" in capsys.readouterr().err


def test_another_model_is_refused(made, model, videos, tmp_path, capsys):
    other, made_of = tmp_path / "other", clip_model(CLIP_ENCODER)
    parts = (made_of.config, made_of.preprocessing, made_of.variables)
    saved_model.save(other, "video_vit", *parts)
    for command in ([str(made), "red"], [str(videos), f"--output={made}"]):
        run = search.main if "red" in command else index.main
        assert run([*command, f"--model={other}"]) == 2
        error = capsys.readouterr().err
        assert "expected the model that the index was made with" in error
        assert str(model) in error
        assert str(other) in error
        assert run([*command, "--model=./nowhere"]) == 2
        assert "say with --model where it is" in capsys.readouterr().err


def test_the_demos_model_is_meant_without_one(videos, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path))
    output = f"--output={tmp_path / 'index'}"
    assert index.main([str(videos / "short.mp4"), output]) == 2
    assert "make demo" in capsys.readouterr().err
    place = tmp_path / "demo/training/full-1/stage_2"
    place.mkdir(parents=True)
    (place / "model").symlink_to(model)
    assert index.main([str(videos / "short.mp4"), output]) == 0
    assert search.main([str(tmp_path / "index"), "red"]) == 0
    assert "short.mp4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected a text to search for"),
        (["  "], "texts with words, found '  '"),
        (["red", "--sheet=x.xyz"], "ends in one of .png"),
        (["red", "--json=x", "--sheet=x"], "another file than --json"),
        (["red", "--clip=no.mp4"], "no.mp4"),
    ],
)
def test_what_cannot_be_searched_for(made, argv, message, capsys):
    assert search.main([str(made), *argv]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_index_is_refused(videos, model, tmp_path, capsys):
    path = tmp_path / "index"
    path.write_text("{}" * 50)
    for command in (
        lambda: search.main([str(path), "red"]),
        lambda: index.main([str(videos), f"--output={path}", f"--model={model}"]),
    ):
        assert command() == 2
        assert f"{path}: expected an index that `internvideo-jax index` wrote" in (
            capsys.readouterr().err
        )
    assert path.read_text() == "{}" * 50
    assert search.main([str(tmp_path / "nowhere"), "red"]) == 2
    assert "nowhere: expected an index that" in capsys.readouterr().err
    assert search.main([str(videos), "red"]) == 2
    assert "expected a regular file, found a folder" in capsys.readouterr().err


def test_nothing_is_written_where_nothing_can_be_read(model, tmp_path, capsys):
    (tmp_path / "bad.mp4").touch()
    output = tmp_path / "index"
    assert index.main([str(tmp_path), f"--output={output}", f"--model={model}"]) == 2
    assert "found none of 1; nothing is written" in capsys.readouterr().err
    assert not output.exists()


def test_the_nearest_option_is_suggested(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        search.main(["videos.index", "red", "--topk=3", "--shet=x.png"])
    error = capsys.readouterr().err
    assert "unrecognized arguments: --topk=3 --shet=x.png; did you mean '--top'?" in error


@pytest.mark.slow
@pytest.mark.skipif(not SHARED, reason="real clips are found through INTERNVIDEO_SHARED")
def test_real_clips_end_to_end(model, tmp_path, capsys):
    clips, path, picture = Path(str(SHARED)) / "clips", tmp_path / "index", tmp_path / "found.png"
    assert index.main([str(clips), f"--model={model}", f"--output={path}", "--window=2"]) == 0
    assert "of 9 videos" in capsys.readouterr().out
    assert search.main([str(path), "a dog in the snow", f"--sheet={picture}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert picture.stat().st_size > 50_000
