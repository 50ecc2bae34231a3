"""The commands `evaluate` and `predict` where classes and candidates are named by texts."""

import csv
import json

import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.evaluation.retrieval.store import RetrievalStore
from internvideo_jax.launch import evaluate, predict
from internvideo_jax.launch.common.missing_clips import check_list
from internvideo_jax.models import VideoClassifierConfig
from tests.small_models import CLIP_ENCODER, clip_model, save_stage2

# Colours are the classes.
CLIPS = {"a": "red", "b": "blue", "c": "green", "d": "red"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_stage2(tmp_path_factory.mktemp("stage2"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, color in CLIPS.items():
        frames = scenes.render(scenes.Scene("ring", color, "left"), 9, 48)
        scenes.write_video(folder / f"{name}.mp4", frames)
    return folder


@pytest.fixture
def run(model, videos, tmp_path):
    def call(content, *options, config="zero_shot.py:custom", name="list.csv", output="result"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return evaluate.main([
            f"--model={model}", f"--config=configs/eval/{config}",
            f"--config.eval_data.annotations={path}", f"--config.eval_data.root={videos}",
            f"--output={tmp_path / output}", "--batch_size=2", *options,
        ])  # fmt: skip

    return call


def named():
    return "".join(f"{name}.mp4,{color}\n" for name, color in CLIPS.items())


def card_of(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def lines_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_result_and_all_it_depends_on(run, tmp_path, capsys):
    options = ["--config.eval_data.segments=2", "--config.eval_data.num_frames=4"]
    assert run(named(), *options, config="zero_shot.py:k400") == 0
    output = tmp_path / "result"
    names = sorted(path.name for path in output.iterdir())
    assert names == [
        "confusion.png", "per_class.csv", "predictions.jsonl", "result.json", "result.md",
    ]  # fmt: skip
    card = card_of(output)
    assert card["task"] == "zero-shot classification"
    assert card["classes"] == ["blue", "green", "red"]
    assert set(card["metrics"]) == {"top1", "mean_class_accuracy", "mAP"}
    assert (card["clips"], card["texts"], len(card["zero_shot"]["prompts"])) == (4, 48, 16)
    assert card["zero_shot"]["max_text_length"] == 16
    views = card["views"]
    assert (views["num_frames"], views["segments"], views["sampling"]) == (4, 2, "intervals")
    assert len(card["model"]["sha256"]) == len(card["annotations"]["sha256"]) == 64
    lines = lines_of(output)
    assert [(line["id"], line["label"]) for line in lines] == [
        (f"{name}.mp4", color) for name, color in CLIPS.items()
    ]
    right = [card["classes"][line["best"][0][0]] == line["label"] for line in lines]
    assert card["metrics"]["top1"] == 100 * sum(right) / 4
    for line in lines:
        assert sum(score for _, score in line["best"]) == pytest.approx(1, abs=1e-5)
    with (output / "per_class.csv").open(newline="") as file:
        assert [row["clips"] for row in csv.DictReader(file)] == ["1", "1", "2"]
    captured = capsys.readouterr()
    assert "3 classes in 16 prompts" in captured.err
    assert "top1" in captured.out


def test_an_interrupted_measurement_goes_on_whatever_the_texts(run, tmp_path, monkeypatch, capsys):
    assert run(named(), "--config.zero_shot.prompts=the {}", output="whole") == 0
    put, encoded = RetrievalStore.put_clip, []

    def until_the_third(self, number, *arrays):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(number)
        put(self, number, *arrays)

    monkeypatch.setattr(RetrievalStore, "put_clip", until_the_third)
    assert run(named()) == 130
    monkeypatch.setattr(
        RetrievalStore,
        "put_clip",
        lambda self, number, *arrays: encoded.append(number) or put(self, number, *arrays),
    )
    # Clips are encoded alike, whatever they are compared with; but not of other frames.
    assert run(named(), "--config.eval_data.num_frames=2") == 2
    assert "views.num_frames: expected 2, found 4" in capsys.readouterr().err
    assert run(named(), "--config.zero_shot.prompts=the {}") == 0
    assert sorted(encoded) == [0, 1, 2, 3]
    assert card_of(tmp_path / "result")["metrics"] == card_of(tmp_path / "whole")["metrics"]
    assert not (tmp_path / "result" / "partial").exists()


def test_actions_of_charades_are_found_in_any_number(run, tmp_path):
    content = "id,actions\na,c0 0.0 1.0;c2 0.0 2.0\nb,c1 1.0 2.0\nc,\nd,c2 0.0 1.0\n"
    (tmp_path / "names.txt").write_text("c0 Holding a ring\nc1 Moving\nc2 Sitting\nc3 Running\n")
    options = [f"--classes={tmp_path / 'names.txt'}", "--config.eval_data.num_frames=4"]
    assert run(content, *options, config="zero_shot.py:charades", name="test.csv") == 0
    card = card_of(tmp_path / "result")
    assert set(card["metrics"]) == {"mAP"}
    assert card["classes"] == ["Holding a ring", "Moving", "Sitting", "Running"]
    assert [line["label"] for line in lines_of(tmp_path / "result")] == [[0, 2], [1], [], [2]]


def test_each_clip_has_its_candidates(run, tmp_path, capsys):
    items = [
        {"video": "a", "candidates": ["a red ring", "a blue ring"], "answer": 0},
        {"video": "b", "candidates": ["a red ring", "a blue ring", "a cross"], "answer": 1},
    ]
    content = "\n".join(map(json.dumps, items))
    assert run(content, config="multiple_choice.py:custom", name="list.jsonl") == 0
    card = card_of(tmp_path / "result")
    assert (card["task"], card["clips"], card["candidates"]) == ("multiple choice", 2, 3)
    lines = lines_of(tmp_path / "result")
    assert [(line["id"], line["answer"], len(line["best"])) for line in lines] == [
        ("a", 0, 2), ("b", 1, 3),
    ]  # fmt: skip
    right = [line["best"][0][0] == line["answer"] for line in lines]
    assert card["metrics"] == {"accuracy": 50.0 * sum(right)}
    number, text, _ = lines[1]["best"][0]
    assert items[1]["candidates"][number] == text
    assert "accuracy" in capsys.readouterr().out
    several = [item | {"candidates": ["x", "y"], "answer": [1, 0]} for item in items]
    options = {"config": "multiple_choice.py:charades", "name": "list.json", "output": "several"}
    assert run(several, "--config.eval_data.num_frames=4", **options) == 0
    assert card_of(tmp_path / "several")["metrics"] == {"mAP": 100.0}


def test_missing_and_broken_videos_are_left_out_where_they_may_be(run, videos, tmp_path, capsys):
    (videos / "broken.mp4").write_bytes(b"no video" * 100)
    content = f"{named()}gone.mp4,cyan\nbroken.mp4,red\n"
    assert run(content) == 2
    error = capsys.readouterr().err
    assert "1 of 6 videos are missing:\n  gone.mp4" in error
    assert "--allow_missing measures the others, and says so" in error
    assert not (tmp_path / "result").exists()
    assert run(content, "--allow_missing") == 1
    card = card_of(tmp_path / "result")
    assert (card["missing"], card["clips"]) == (["gone.mp4"], 4)
    assert [clip["id"] for clip in card["failed"]] == ["broken.mp4"]
    # Nobody's class is still one that clips may be taken for.
    assert "cyan" in card["classes"]
    (videos / "broken.mp4").unlink()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("zero_shot.py:custom", ["--config.zero_shot.prompts=k40"], "prompts: "),
        ("zero_shot.py:custom", ["--config.zero_shot.prompts=a video"], "template"),
        ("zero_shot.py:custom", ["--config.eval_data.segments=0"], "config.eval_data.segments"),
        ("multiple_choice.py:custom", ["--classes=names.txt"], "candidates of its own"),
        ("multiple_choice.py:custom", [], "candidates"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    config, options, message, run, tmp_path, capsys
):
    name = "list.csv" if config.startswith("zero") else "list.jsonl"
    content = named() if config.startswith("zero") else '{"video": "a", "answer": 0}\n'
    assert run(content, *options, config=config, name=name) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "result").exists()


def test_other_models_and_no_list_are_refused(run, model, tmp_path, capsys):
    made = clip_model(CLIP_ENCODER)
    saved_model.save(tmp_path / "m", "video_vit", made.config, made.preprocessing, made.variables)
    assert run(named(), f"--model={tmp_path / 'm'}") == 2
    assert "compares clips with texts, found VideoViT" in capsys.readouterr().err
    options = ["--config=configs/eval/zero_shot.py:k400", f"--output={tmp_path / 'result'}"]
    assert evaluate.main([f"--model={model}", *options]) == 2
    assert "a list of clips with labels, found none" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ("zero_shot.py:demo,looks", "--config=configs/eval/zero_shot.py:demo,looks,fast"),
        ("zero_shot.py:demo,looks,fast", "by `internvideo-jax demo --fast`"),
        ("retrieval.py:demo", "--config=configs/eval/retrieval.py:demo,NAME,fast"),
    ],
)
def test_clips_of_the_demo_are_made_by_it(config, remedy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path))
    command = ["--model=demo", f"--config=configs/eval/{config}", f"--output={tmp_path / 'result'}"]
    assert evaluate.main(command) == 2
    error = capsys.readouterr().err
    assert f"expected the clips of the demo in {tmp_path}/demo/world" in error
    assert "internvideo-jax demo" in error
    assert remedy in error
    lost = f"--config.eval_data.annotations={tmp_path / 'lost.csv'}"
    command[1] = "--config=configs/eval/zero_shot.py"
    assert evaluate.main([*command, lost]) == 2
    assert "lost.csv; correct --config.eval_data.annotations" in capsys.readouterr().err
    # Whether there is such a file is for its reader to find out.
    check_list("gs://bucket/list.json", "configs/eval/zero_shot.py:choices")


def test_lists_of_a_classifier_are_no_measure_of_texts(model, tmp_path, capsys):
    (tmp_path / "list.csv").write_text(named())
    options = [f"--annotations={tmp_path / 'list.csv'}", f"--output={tmp_path / 'result'}"]
    assert evaluate.main([f"--model={model}", *options]) == 2
    assert "found Stage2, which compares clips with texts; measure it" in capsys.readouterr().err
