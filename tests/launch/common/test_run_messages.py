"""What is said of runs."""

import dataclasses
import json
import logging
from types import SimpleNamespace

import pytest

from internvideo_jax.data.config import DataConfig
from internvideo_jax.launch.common.run_messages import (
    name_unreadable,
    say_held_out,
    say_overlap,
    say_what_next,
)
from internvideo_jax.models import build
from tests.small_models import CONFIGS, STAGE2


@pytest.mark.parametrize("kind", ["stage1_student", "visual"])
def test_of_a_stage_without_classes_features_come_next(tmp_path, capsys, kind):
    stage = SimpleNamespace(num_classes=None, module=build(CONFIGS.get(kind) or STAGE2[kind]))
    run = SimpleNamespace(stage=stage)
    say_what_next(run, tmp_path)
    out = capsys.readouterr().out
    assert f"  internvideo-jax extract FILE_OR_FOLDER --model={tmp_path}/model --output=DIR" in out
    assert "predict" not in out
    # Texts are looked for by models alone that compare them with clips.
    assert ("evaluate" in out) == ("configs/eval/retrieval.py:custom" in out)
    assert ("evaluate" in out) == (kind == "visual")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([None] * 20, "held out to evaluate on: 4 of 20 clips"),
        (["a", "b"] * 10, "held out to evaluate on: 4 of 20 clips (a 2 of 10, b 2 of 10)"),
    ],
)
def test_clips_that_are_held_out_are_counted_by_class_where_they_have_one(
    tmp_path, caplog, labels, said
):
    lines = [json.dumps({"video": f"{i}.mp4", "label": x}) for i, x in enumerate(labels)]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    clips = DataConfig(annotations=str(tmp_path / "clips.jsonl"), validation_share=0.2)
    held_out = dataclasses.replace(clips, part="validation")
    with caplog.at_level(logging.INFO):
        say_held_out(SimpleNamespace(data=clips, eval_data=held_out))
    assert [record.getMessage() for record in caplog.records] == [said]


def test_of_very_many_clips_the_first_are_named(caplog):
    name_unreadable("cannot be read", {f"{i}.mp4": "broken" for i in range(25)})
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "cannot be read: 0.mp4: broken"
    assert len(lines) == 21
    assert lines[20].startswith("cannot be read: 5 more; ")


@pytest.mark.parametrize(
    ("evaluated", "warned"),
    [("b.mp4,0\nc.mp4,1\nx/../a.mp4,0\n", ["2 of the 3 clips to"]), ("c.mp4,0\nd.mp4,1\n", [])],
)
def test_clips_that_are_both_trained_and_evaluated_on_are_counted(
    tmp_path, caplog, evaluated, warned
):
    (tmp_path / "train.csv").write_text("a.mp4,0\nb.mp4,1\n")
    (tmp_path / "val.csv").write_text(evaluated)
    data = [DataConfig(annotations=str(tmp_path / name)) for name in ("train.csv", "val.csv")]
    say_overlap(SimpleNamespace(data=data[0], eval_data=data[1]))
    found = [record.getMessage() for record in caplog.records]
    assert [text[: len("2 of the 3 clips to")] for text in found] == warned
