"""The command `evaluate`."""

import csv
import json
import shutil

import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes as synthetic
from internvideo_jax.evaluation import runner
from internvideo_jax.launch import evaluate
from internvideo_jax.launch.common import inference
from internvideo_jax.models import VideoClassifierConfig
from tests.small_models import CLIP_ENCODER, clip_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    model = clip_model(VideoClassifierConfig(CLIP_ENCODER, num_classes=3))
    parts = model.config, model.preprocessing, model.variables
    saved_model.save(path, "video_classifier", *parts, {"source": {"x": 1}})
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, color in (("a", "red"), ("b", "green"), ("c", "blue")):
        scene = synthetic.Scene("square", color, "left")
        synthetic.write_video(folder / f"{name}.mp4", synthetic.render(scene, 9, size=48))
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture
def run(model_dir, videos, tmp_path):
    output = tmp_path / "result"

    def call(lines, *argv):
        file = tmp_path / "clips.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        options = [f"--model={model_dir}", f"--root={videos}", f"--output={output}"]
        return evaluate.main([*options, f"--annotations={file}", *map(str, argv)])

    call.output = output
    return call


@pytest.fixture
def interrupted(monkeypatch):
    def collect(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "collect", collect)


CLIPS = [
    {"video": name, "label": label} for name, label in (("a.mp4", 0), ("b.mp4", 1), ("c.mp4", 0))
]


def test_a_result_and_all_it_depends_on(run, capsys):
    assert run(CLIPS, "--segments=2", "--crops=1", "--batch_size=4") == 0
    names = sorted(path.name for path in run.output.iterdir())
    pictures = ["confusion.png", "per_class.csv", "predictions.jsonl"]
    assert names == [*pictures, "result.json", "result.md"]
    card = json.loads((run.output / "result.json").read_text())
    assert card["clips"] == 3
    assert card["failed"] == []
    assert set(card["metrics"]) == {"top1", "mean_class_accuracy", "mAP"}
    assert card["views"] == {
        "num_frames": 4,
        "image_size": 32,
        "segments": 2,
        "crops": 1,
        "sampling": "sparse",
        "rate": 1,
    }
    assert card["model"]["name"].endswith("/tiny")
    assert len(card["model"]["digest"]) == 16
    assert card["model"]["source"] == {"x": 1}
    assert len(card["model"]["sha256"]) == len(card["annotations"]["sha256"]) == 64
    assert card["dtype"] == "float32"
    lines = [json.loads(x) for x in (run.output / "predictions.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [0, 1, 0]
    assert [len(line["frames"]) for line in lines] == [2, 2, 2]
    hits = np.mean([line["best"][0][0] == line["label"] for line in lines])
    np.testing.assert_allclose(card["metrics"]["top1"], 100 * hits)
    with (run.output / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clips"] for row in rows] == ["2", "1", "0"]
    out = capsys.readouterr().out
    assert f"top1                 {card['metrics']['top1']:6.2f} %" in out
    assert "3 clips in" in out


def test_the_same_clips_give_the_same_result(run, tmp_path):
    def metrics(*argv):
        assert run(CLIPS, *argv) == 0
        card = json.loads((run.output / "result.json").read_text())
        predictions = (run.output / "predictions.jsonl").read_text()
        run.output.rename(tmp_path / f"result{len(list(tmp_path.iterdir()))}")
        return card["metrics"], card["model"]["sha256"], predictions

    assert metrics("--num_threads=1") == metrics("--num_threads=3")


def test_unreadable_clips_are_listed_and_never_replaced(run, videos, capsys):
    clips = [*CLIPS, {"video": "broken.mp4", "label": 2}, {"video": "missing.mp4", "label": 1}]
    assert run(clips) == 1
    captured = capsys.readouterr()
    assert "3 (2 failed)" in captured.out
    assert "2 failed:" in captured.err
    assert f"{videos / 'broken.mp4'}   expected a video file" in captured.err
    assert f"{videos / 'missing.mp4'}  expected a video file" in captured.err
    card = json.loads((run.output / "result.json").read_text())
    assert card["clips"] == 3
    assert card["annotations"]["clips"] == 5
    assert [row["id"] for row in card["failed"]] == ["broken.mp4", "missing.mp4"]
    assert all(row["reason"] for row in card["failed"])


def test_of_very_many_failures_the_first_are_listed(capsys):
    inference.print_failures([(f"{i}.mp4", "broken") for i in range(103)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "103 failed:"
    assert lines[100] == "  99.mp4  broken"
    assert lines[101:] == ["  and 3 more"]


def test_nothing_readable_is_an_error(run, capsys):
    assert run([{"video": "broken.mp4", "label": 2}], "--allow_failed") == 2
    assert "none of the 1 clips can be read" in capsys.readouterr().err
    assert not (run.output / "result.json").exists()


def test_multi_label_clips_of_which_some_may_fail(run):
    clips = [{"video": "a.mp4", "label": [0, 1]}, {"video": "broken.mp4", "label": [1]}]
    assert run(clips, "--allow_failed") == 0
    card = json.loads((run.output / "result.json").read_text())
    assert set(card["metrics"]) == {"mAP"}
    assert not (run.output / "confusion.png").exists()
    lines = [json.loads(x) for x in (run.output / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["label"] == [0, 1]


@pytest.mark.filterwarnings("error")
def test_classes_have_names_in_any_script(run, tmp_path, capsys):
    (tmp_path / "names.json").write_text('["猫狗", "dog", "牛"]')
    assert run(CLIPS, f"--classes={tmp_path / 'names.json'}") == 0
    captured = capsys.readouterr()
    assert "\ndog  " in captured.out
    assert "猫狗" in (run.output / "per_class.csv").read_text()
    assert [x for x in captured.err.splitlines() if "font" in x or "Glyph" in x] == [
        "confusion.png: the font lacks characters of some names; they show as boxes"
    ]


@pytest.fixture
def named(model_dir, tmp_path):
    """The model, with names of its classes."""
    description = json.loads((model_dir / "model.json").read_text())
    path = shutil.copytree(model_dir, tmp_path / "named")
    classes = {"classes": ["walking", "sitting", "lying"]}
    del description["sha256"]
    (path / "model.json").write_text(json.dumps(description | classes))
    return path


def test_classes_that_the_model_names_need_no_file(run, named, capsys):
    assert run(CLIPS, f"--model={named}") == 0
    assert "\nwalking  " in capsys.readouterr().out
    assert "sitting" in (run.output / "per_class.csv").read_text()


@pytest.mark.parametrize("option", ["--classes", "--class_names"])
def test_names_in_a_file_keep_the_order_of_the_models_own(run, named, tmp_path, capsys, option):
    names = tmp_path / "names.txt"
    names.write_text("sitting\nwalking\nlying\n")
    assert run(CLIPS, f"--model={named}", f"{option}={names}") == 2
    assert "'walking' as number 0, found 'sitting'" in capsys.readouterr().err
    assert not run.output.exists()


def test_names_of_a_model_in_other_words_are_taken(run, named, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("gehen\nsitzen\nliegen\n")
    clips = [{"video": "a.mp4", "label": "walking"}, {"video": "b.mp4", "label": "sitting"}]
    assert run(clips, f"--model={named}", f"--classes={names}") == 0
    assert "'gehen' for 'walking'" in capsys.readouterr().err
    with (run.output / "per_class.csv").open() as file:
        assert [(row["name"], row["clips"]) for row in csv.DictReader(file)] == [
            *(("gehen", "1"), ("sitzen", "1"), ("liegen", "0"))
        ]


def test_labels_of_a_config_keep_the_order_of_the_models_names(named, tmp_path, capsys):
    classes = 'classes=("lying", "sitting", "walking"), num_classes'
    (tmp_path / "tiny.py").write_text(CONFIG.replace(" num_classes", f" {classes}", 1))
    argv = [f"--model={named}", f"--config={tmp_path / 'tiny.py'}", f"--output={tmp_path / 'new'}"]
    assert evaluate.main(argv) == 2
    assert "eval_data.classes: expected the classes in the model's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat\n", "the model's 3 classes, found 1"), ('{"a": 1}', "each number from 0 to 0")],
)
def test_wrong_class_names(run, tmp_path, capsys, text, message):
    file = tmp_path / ("names.json" if text.startswith("{") else "names.txt")
    file.write_text(text)
    assert run(CLIPS, f"--classes={file}") == 2
    assert message in capsys.readouterr().err
    assert not run.output.exists()


def test_wrong_annotations_are_refused_before_anything_is_done(run, capsys):
    assert run([*CLIPS, {"video": "a.mp4", "label": 3}]) == 2
    assert "clips.jsonl:4" in capsys.readouterr().err
    assert not run.output.exists()


def test_frames_must_be_whole_tubelets(run, capsys):
    assert run(CLIPS, "--frames=7") == 2
    assert "multiples of 2, the model's tubelet size, found 7" in capsys.readouterr().err
    assert not run.output.exists()


def test_an_existing_result_is_left_alone(run, capsys):
    run.output.mkdir()
    (run.output / "result.json").write_text("precious")
    assert run(CLIPS) == 2
    assert "not empty" in capsys.readouterr().err
    assert (run.output / "result.json").read_text() == "precious"


CONFIG = """
import dataclasses
from ml_collections import ConfigDict
from internvideo_jax.config import to_dict
from internvideo_jax.data.config import DataConfig
from internvideo_jax.models.video_classifier import VideoClassifierConfig
from internvideo_jax.training.stages import ClassifyConfig
from tests.small_models import CLIP_ENCODER


def get_config(classes="3"):
    encoder = dataclasses.replace(CLIP_ENCODER, drop_path_rate=0.1)
    classes = int(classes)
    stage = to_dict(ClassifyConfig(model=VideoClassifierConfig(encoder, classes)))
    train = {"batch_size": 4, "steps": 4, "optimizer": {"lr": 0.002}}
    data = DataConfig(
        annotations="clips.csv", root="videos", num_classes=classes, num_frames=4, image_size=32,
        segments=2, crops=1, sampling_rate=1,
    )
    return ConfigDict({
        "stage": {"kind": "classify", **stage}, "train": train,
        "data": to_dict(data), "eval_data": to_dict(data),
    })
"""


def test_the_evaluation_of_a_training_config(run, model_dir, videos, tmp_path, capsys):
    assert run(CLIPS, "--segments=2", "--crops=1") == 0
    expected = json.loads((run.output / "result.json").read_text())
    predictions = (run.output / "predictions.jsonl").read_text()
    (tmp_path / "tiny.py").write_text(CONFIG)
    again = tmp_path / "again"
    overrides = [
        f"--config.eval_data.annotations={tmp_path / 'clips.jsonl'}",
        f"--config.eval_data.root={videos}",
    ]
    argv = [f"--model={model_dir}", f"--config={tmp_path / 'tiny.py'}", f"--output={again}"]
    assert evaluate.main([*argv, *overrides]) == 0
    card = json.loads((again / "result.json").read_text())
    for name in ("task", "metrics", "views", "annotations", "model"):
        assert card[name] == expected[name]
    assert card["config"]["overrides"] == overrides
    assert (again / "predictions.jsonl").read_text() == predictions

    argv[-1] = f"--output={tmp_path / 'third'}"
    assert evaluate.main([*argv, *overrides, "--segments=3"]) == 2
    assert "--config.eval_data" in capsys.readouterr().err
    argv[1] += ":4"
    assert evaluate.main([*argv, *overrides]) == 2
    assert "expected a model of 4 classes, found 3" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_an_interruption_leaves_no_folder_that_it_made(run, interrupted):
    assert run(CLIPS) == 130
    assert not run.output.exists()
    # One that was there stays.
    run.output.mkdir()
    assert run(CLIPS) == 130
    assert run.output.is_dir()
