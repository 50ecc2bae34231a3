"""What is said of runs."""

from types import SimpleNamespace

from internvideo_jax.launch.common.run_messages import name_unreadable, say_what_next


def test_of_a_stage_without_classes_features_come_next(tmp_path, capsys):
    stage = SimpleNamespace(num_classes=None)
    say_what_next(SimpleNamespace(stage=stage), tmp_path)
    out = capsys.readouterr().out
    assert f"  internvideo-jax extract FILE_OR_FOLDER --model={tmp_path}/model --output=DIR" in out
    assert "predict" not in out


def test_of_very_many_clips_the_first_are_named(caplog):
    name_unreadable("cannot be read", {f"{i}.mp4": "broken" for i in range(25)})
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "cannot be read: 0.mp4: broken"
    assert len(lines) == 21
    assert lines[20].startswith("cannot be read: 5 more; ")
