import json
import os

import pytest

from internvideo_jax.class_names import check_order, read_class_names

NAMES = ("riding a bike", "猫", "put [something] on a table")


def written(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("names.txt", "\n".join(NAMES)),
        ("names.txt", "\ufeff" + "\r\n".join(NAMES) + "\r\n\r\n"),
        ("names.csv", "  " + " \n".join(NAMES)),
        ("classInd.txt", "".join(f"{i} {name}\r\n" for i, name in enumerate(NAMES, start=1))),
        ("labels.csv", "id,name\n" + "\n".join(f"{i},{name}" for i, name in enumerate(NAMES))),
        ("names.txt", "\n".join(f"{NAMES[i]}, {i}" for i in (2, 0, 1))),
        ("names.tsv", "\n".join(f'"{name}"\t{i}' for i, name in enumerate(NAMES))),
        ("names.json", list(NAMES)),
        ("names.JSON", {"1": NAMES[1], "0": NAMES[0], "2": NAMES[2]}),
        ("names.json", {NAMES[2]: 2, NAMES[0]: 0, NAMES[1]: 1}),
        ("names.json", {name: str(i) for i, name in enumerate(NAMES)}),
        ("names.json", {f'"{name}"': i for i, name in enumerate(NAMES)}),
        ("config.json", {"model_type": "vit", "id2label": dict(enumerate(NAMES))}),
        ("config.json", {"label2id": {name: i for i, name in enumerate(NAMES)}}),
    ],
)
def test_the_usual_forms_are_read(tmp_path, name, value):
    file = written(tmp_path / name, value)
    assert read_class_names(file) == read_class_names(file, num_classes=3) == NAMES


@pytest.mark.parametrize("lines", [("1 a", "3 b"), ("2 a", "3 b"), ("a", "1 b", "2 c"), "01"])
def test_names_that_begin_with_numbers(tmp_path, lines):
    assert read_class_names(written(tmp_path / "a.txt", "\n".join(lines))) == tuple(lines)


def test_names_that_are_numbers(tmp_path):
    assert read_class_names(written(tmp_path / "a.json", {"0": "1", "1": "0"})) == ("1", "0")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a.txt", "", "a.txt: expected names of the model's 3 classes, found 0"),
        ("a.txt", "a\n\nc", "a.txt:2: expected the name of a class, found none"),
        ("a.txt", "a\nb\na", "a.txt:3: expected another name than 'a', which .*a.txt:1 has"),
        ("a.txt", "a\nb", "expected names of the model's 3 classes, found 2"),
        ("a.yaml", "- a\n- b\n- c", "one on each line, or as .json, found a name of YAML"),
        ("a.json", ["a", "", "c"], "class 1: expected the name of a class"),
        ("a.json", ["a", "b", "b"], "class 2: expected another name than 'b', which .* class 1"),
        ("a.json", ["a", 1, "c"], "found another form"),
        ("a.json", {"a": True, "b": 1}, "found another form"),
        ("a.json", {"a": 1.0}, "found another form"),
        ("a.json", {"model_type": "vit"}, "found another form"),
        ("a.json", "3", "found another form"),
        ("a.json", {}, "found another form"),
        ("a.json", {"a": 1, "b": 2, "c": 3}, "0 to 2 once for 3 classes, found 1 to 3"),
        ("a.json", {"a": 0, "b": 2, "c": 2}, "0 to 2 once for 3 classes, found 0 to 2"),
        ("a.json", {"a": 0, "b": 10**400}, "0 to 1 once"),
        ("a.json", "[" * 100_000, "at most 64 levels"),
    ],
)
def test_what_is_no_list_of_classes_is_refused(tmp_path, name, value, message):
    with pytest.raises(ValueError, match=message):
        read_class_names(written(tmp_path / name, value), num_classes=3)


def test_other_encodings_and_pipes_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("schön".encode("latin-1"))
    with pytest.raises(ValueError, match="a.txt: expected UTF-8 text"):
        read_class_names(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(ValueError, match="b.txt: expected a regular file, found a pipe"):
        read_class_names(tmp_path / "b.txt")


def test_a_missing_file_is_told_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="nope.txt: expected .* one on each line") as error:
        read_class_names(tmp_path / "nope.txt")
    assert "no such file" in str(error.value)


def test_the_models_names_in_another_order_are_refused():
    own = ("left", "right", "down")
    for names in (("right", "left", "down"), ("right", "links", "down")):
        with pytest.raises(
            ValueError, match="a.txt: expected .* 'left' as number 0, found 'right'"
        ):
            check_order(names, own, "a.txt")
    with pytest.raises(ValueError, match="the model's 3 classes, found 2"):
        check_order(own[:2], own, "a.txt")


def test_other_names_for_the_models_are_warned_of_once(caplog):
    own = ("left", "right", "down")
    check_order(own, own, "a.txt")
    assert not caplog.records
    check_order(("left", "rechts", "unten"), own, "a.txt")
    (record,) = caplog.records
    assert "'rechts' for 'right'" in record.getMessage()
    assert "unten" not in record.getMessage()
