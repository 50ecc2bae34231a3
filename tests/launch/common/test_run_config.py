import json
import logging
import shlex
from argparse import Namespace

import pytest

from internvideo_jax.configs.stage1 import finetune, probe
from internvideo_jax.data.examples import Clips
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common.run_config import completed, parse_run, print_config

FILE = "configs/stage1/finetune.py"


def config(*options, recipe=f"{FILE}:tiny,custom"):
    return arguments.parse_config(
        Namespace(config=recipe), [f"--config.{option}" for option in options]
    )


def run(*options):
    return parse_run(config(*options))


def write(path, *labels):
    """A list of clips with these labels."""
    lines = [{"video": f"{i}.mp4", "label": label} for i, label in enumerate(labels)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def folders(path, **counts):
    """Folders of so many empty files for each class."""
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            (path / name / f"{i}.mp4").touch()
    return path


def labels(data):
    clips = Clips(data)
    return [clips[index].record.label for index in range(len(clips))]


def test_classes_are_the_names_in_the_list(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", "walk", "run", "walk", "jump")
    with caplog.at_level(logging.INFO):
        made = run(f"data.annotations={path}")
    assert made.stage.config.classes == made.data.classes == ("jump", "run", "walk")
    assert made.stage.num_classes == made.data.num_classes == 3
    assert made.eval_data.num_classes == 3
    assert (made.data.num_frames, made.data.image_size, made.data.num_sample) == (8, 32, 1)
    assert "3 classes" in caplog.text
    assert "jump (1), run (1), walk (2)" in caplog.text
    # A checkpoint that holds this config refuses other classes.
    assert made.as_json["stage"]["classes"] == ["jump", "run", "walk"]


def test_classes_that_are_hardly_meant_are_named(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", "Dog", "dog", "dog", "cat", "cat")
    run(f"data.annotations={path}")
    assert f"{path}: names of different classes look alike: 'Dog', 'dog'" in caplog.text
    assert f"{path}: classes of a single clip" in caplog.text


def test_a_csv_with_names_is_a_list(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("a.mp4,walk\nb.mp4,run a lap\n")
    assert run(f"data.annotations={path}").stage.config.classes == ("run a lap", "walk")


def test_numbers_stay_numbers(tmp_path, caplog):
    made = run(f"data.annotations={write(tmp_path / 'a.jsonl', 3, 1, 0, 1)}")
    assert made.stage.num_classes == 4
    assert made.stage.config.classes == ()
    assert made.data.classes is None
    assert "no clip of" in caplog.text
    assert "has the label 2" in caplog.text


def test_a_folder_for_each_class(tmp_path):
    path = folders(tmp_path / "videos", run=1, walk=2)
    made = run(f"data.annotations={path}")
    assert made.stage.config.classes == ("run", "walk")
    assert labels(made.data) == ["run", "walk", "walk"]
    with pytest.raises(ValueError, match="expected 400 classes.*, found 2.*custom"):
        parse_run(config(f"data.annotations={path}", recipe=f"{FILE}:b14,k400"))


def test_given_classes_decide_the_order_and_number(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = tmp_path / "classes.txt"
    names.write_text("walk\nrun\njump\n")
    path = write(tmp_path / "a.jsonl", "run", "walk")
    made = run(f"data.annotations={path}", f"data.classes={names}")
    assert made.stage.config.classes == made.data.classes == ("walk", "run", "jump")
    assert "3 classes of " in caplog.text
    assert "walk (1), run (1), jump (0)" in caplog.text
    assert f"no clip of {path} has the label 'jump'" in caplog.text
    # Without clips, too.
    assert run(f"data.classes={names}").stage.num_classes == 3
    names.write_text("walk\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*found 'run'"):
        labels(run(f"data.annotations={path}", f"data.classes={names}").data)


def test_given_classes_name_the_numbers(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = tmp_path / "classes.txt"
    names.write_text("walk\nrun\njump\n")
    path = write(tmp_path / "a.jsonl", 2, 1, 2)
    run(f"data.annotations={path}", f"data.classes={names}")
    assert "walk (0), run (1), jump (2)" in caplog.text
    assert f"no clip of {path} has the label 'walk'" in caplog.text


def test_a_folder_a_level_too_high_is_warned_of(tmp_path, caplog):
    for part in ("train", "test"):
        folders(tmp_path / "clips" / part, left=2, right=2)
    run(f"data.annotations={tmp_path}/clips/train")
    assert "did you mean" not in caplog.text
    run(f"data.annotations={tmp_path}/clips")
    assert f"did you mean {tmp_path}/clips/" in caplog.text


def test_a_number_of_classes_that_the_clips_do_not_have_is_to_be_left_out(tmp_path):
    path = folders(tmp_path / "videos", run=1, walk=2)
    with pytest.raises(ValueError, match="expected 5 classes.*num_classes.*found 2.*leave"):
        run(f"data.annotations={path}", "stage.model.num_classes=5")


def test_a_class_that_training_never_saw_is_named_with_its_line(tmp_path):
    train = write(tmp_path / "train.jsonl", "run", "walk")
    val = write(tmp_path / "val.jsonl", "run", "wakl")
    made = run(f"data.annotations={train}", f"eval_data.annotations={val}")
    with pytest.raises(ValueError, match=r"val\.jsonl:2: .*found 'wakl'; did you mean 'walk'"):
        Clips(made.eval_data)
    numbers = [write(tmp_path / "a.jsonl", 0, 1), write(tmp_path / "b.jsonl", 0, 2)]
    made = run(f"data.annotations={numbers[0]}", f"eval_data.annotations={numbers[1]}")
    with pytest.raises(ValueError, match=r"b\.jsonl:2: expected a label from 0 to 1, found 2"):
        Clips(made.eval_data)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, None, 1), r"a\.jsonl:2: expected a label from 0 to 1, found none"),
        (("run", "walk", None), r"a\.jsonl:3: expected a label: .* 2 classes, found none"),
        ((None,), "expected a label for every clip"),
        (("walk", "walk"), "at least two classes, found 'walk' alone"),
        ((3, 3), "at least two classes, found 3 alone"),
    ],
)
def test_classes_that_cannot_be_told(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run(f"data.annotations={write(tmp_path / 'a.jsonl', *given)}")


def test_without_clips_the_error_names_the_flag():
    with pytest.raises(ValueError, match=r"set --config\.data\.annotations=LIST_OR_FOLDER"):
        run()


def test_evaluation_follows_training_unless_it_is_set(tmp_path):
    train, val = write(tmp_path / "train.jsonl", "a", "b"), write(tmp_path / "val.jsonl", "b")
    made = run(
        f"data.annotations={train}",
        f"data.root={tmp_path}/videos",
        "data.frame_pattern={:03}.jpg",
        f"eval_data.annotations={val}",
    )
    assert made.eval_data.root == f"{tmp_path}/videos"
    assert made.eval_data.frame_pattern == "{:03}.jpg"
    assert made.eval_data.classes == ("a", "b")
    assert made.eval_data.augmentation == "none"
    own = completed(config("data.root=a", "eval_data.root=b").to_dict())
    assert own["eval_data"]["root"] == "b"


def test_a_validation_share_is_evaluated_on(tmp_path):
    path = folders(tmp_path / "videos", run=10, walk=20)
    options = [f"data.annotations={path}", "data.validation_share=0.2"]
    made = run(*options)
    assert sorted(labels(made.eval_data)) == 2 * ["run"] + 4 * ["walk"]
    assert len(labels(made.data)) == 24
    with pytest.raises(ValueError, match="validation_share: expected annotations"):
        run("data.shards=a", "data.validation_share=0.2", "stage.model.num_classes=2")


def test_clips_beside_a_validation_share_are_refused(tmp_path):
    path = folders(tmp_path / "videos", run=10, walk=20)
    val = write(tmp_path / "val.jsonl", "run")
    options = [f"data.annotations={path}", f"eval_data.annotations={val}"]
    with pytest.raises(ValueError, match=rf"validation_share and eval_data\.annotations={val}"):
        run(*options, "data.validation_share=0.2")
    assert len(labels(run(*options).data)) == 30


def test_a_printed_validation_share_can_be_pasted(tmp_path, capsys):
    path = folders(tmp_path / "videos", run=10, walk=20)
    changed = config(f"data.annotations={path}", "data.validation_share=0.2")
    print_config(changed, config())
    options = [option.removeprefix("--config.") for option in options_of(capsys.readouterr().out)]
    assert parse_run(config(*options)).as_json == parse_run(changed).as_json


def test_the_recipes_of_data_sets_get_a_validation_share_too(tmp_path):
    path = write(tmp_path / "a.jsonl", *(10 * [0, 1]))
    recipe = finetune.get_config("b14,k400")
    recipe.data.annotations, recipe.data.validation_share = str(path), 0.2
    made = parse_run(recipe)
    assert made.train.eval_epochs == 1
    assert made.eval_data.segments == 4
    assert made.eval_data.crops == 3
    assert len(labels(made.eval_data)) == 4


def test_evaluations_are_counted_in_epochs(tmp_path):
    made = run(f"data.annotations={write(tmp_path / 'a.jsonl', 0, 1)}")
    assert made.train.eval_every is None
    assert made.train.with_eval_every(12).eval_every == 12
    half = run(f"data.annotations={tmp_path / 'a.jsonl'}", "train.eval_epochs=0.5")
    assert half.train.with_eval_every(1).eval_every == 1


def test_the_warm_up_is_a_share_of_the_run():
    train = config("train.epochs=1.5").train
    assert (train.epochs, train.warmup_epochs) == (1.5, pytest.approx(0.15))


def test_rates_follow_the_batch_unless_they_are_set():
    base = config().train.optimizer
    double = config("train.batch_size=32").train.optimizer
    assert double.lr == pytest.approx(2 * base.lr)
    assert double.min_lr == pytest.approx(2 * base.min_lr)
    fixed = config("train.optimizer.lr=0.002", "train.batch_size=32").train.optimizer
    assert (fixed.lr, fixed.min_lr) == (0.002, pytest.approx(2e-5))


@pytest.mark.parametrize("module", [finetune, probe])
@pytest.mark.parametrize("size", ["tiny", "s14", "b14", "l14", "1b", "6b"])
def test_every_size_has_a_recipe_for_own_classes(module, size):
    recipe = module.get_config(f"{size},custom")
    recipe.stage.model.num_classes = 3
    made = parse_run(recipe)
    assert made.stage.num_classes == 3
    assert (made.stage.config.probe is not None) == (module is probe)
    assert not made.data.flip


def options_of(printed):
    lines = [line for line in printed.splitlines() if not line.startswith("#")]
    return [shlex.split(line, comments=True)[0] for line in lines]


def test_a_printed_config_can_be_pasted(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", "it's", 'a "name"', "a\\b $x")
    changed = config(f"data.annotations={path}", "train.batch_size=8")
    print_config(changed, config())
    printed = capsys.readouterr().out
    assert "--config.train.batch_size=8  # recipe: 16\n" in printed
    assert "--config.data.num_classes=3  # recipe: unset\n" in printed
    assert "--config.train.epochs=20.0\n" in printed
    assert "# --config.data.root is unset\n" in printed
    options = [option.removeprefix("--config.") for option in options_of(printed)]
    assert parse_run(config(*options)).as_json == parse_run(changed).as_json


STAGE2 = "configs/stage2/pretrain.py:6b_audio"
SILENT = ("stage.model.audio=None", "stage.model.match_heads=('video',)")
SILENT += tuple(f"stage.weights.{term}=0" for term in ("avtc", "avtm", "avmlm"))


def test_a_model_may_be_trained_without_its_audio_tower():
    assert parse_run(config(recipe=STAGE2)).stage.config.model.audio is not None
    made = parse_run(config(*SILENT, recipe=STAGE2))
    assert made.stage.config.model.audio is None
    assert made.stage.media == ("video", "image")


def test_a_printed_part_that_is_left_out_can_be_pasted(capsys):
    recipe = "configs/stage1/probe.py:tiny,custom"
    whole = config("stage.probe=None", "stage.model.num_classes=3", recipe=recipe)
    print_config(whole, config(recipe=recipe))
    printed = capsys.readouterr().out
    assert "--config.stage.probe=None  # recipe: " in printed
    options = [option.removeprefix("--config.") for option in options_of(printed)]
    made = parse_run(config(*options, recipe=recipe))
    assert made.stage.config.probe is None
    assert made.as_json == parse_run(whole).as_json


@pytest.mark.parametrize("part", ["stage.model", "stage.model.vision", "train.optimizer"])
def test_parts_that_a_run_needs_cannot_be_left_out(part):
    with pytest.raises(ValueError, match=rf"config\.{part}: expected the fields .* found None"):
        parse_run(config(f"{part}=None", recipe=STAGE2))


def test_a_config_is_printed_without_clips(capsys):
    print_config(config(recipe=f"{FILE}:1b,k400"), config(recipe=f"{FILE}:1b,k400"))
    printed = capsys.readouterr().out
    assert "--config.stage.starts_from=internvideo2-1b-k710\n" in printed
    assert "recipe: " not in printed
