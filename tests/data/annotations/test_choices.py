"""Lists of multiple choice."""

import json

import pytest

from internvideo_jax.data.annotations.choices import read_choices
from internvideo_jax.data.annotations.records import AnnotationError


def write(path, items):
    lines = [json.dumps(item) for item in items]
    text = "\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["own.jsonl", "published.json"])
@pytest.mark.parametrize("key", ["candidates", "option", "caption"])
def test_each_clip_has_candidates_of_its_own(name, key, tmp_path):
    (tmp_path / "a.mp4").touch()
    items = [
        {"video": "a", key: ["swims", "runs"], "answer": 1},
        {"video": "b.mp4", key: ["runs", "sits", "flies"], "answer": 0},
        # Another question of the same clip.
        {"video": "a", key: ["sits", "swims"], "answer": 0},
    ]
    clips = read_choices(write(tmp_path / name, items))
    assert [(r.id, r.captions, r.label) for r in clips.records] == [
        ("a", ("swims", "runs"), 1),
        ("b.mp4", ("runs", "sits", "flies"), 0),
        ("a", ("sits", "swims"), 0),
    ]
    assert clips.records[0].path == clips.records[2].path == str(tmp_path / "a.mp4")
    assert clips.missing == ("b.mp4",)
    assert clips.candidates == ("swims", "runs", "sits", "flies")
    assert clips.most_candidates == 3
    assert not clips.is_multi_label


def test_several_may_be_right(tmp_path):
    options = ["a", "b", "c"]
    items = [
        {"video": "x.mp4", "option": options, "answer": [0, 1, 1]},
        {"video": "y.mp4", "option": options, "answer": [0, 0, 0]},
    ]
    clips = read_choices(write(tmp_path / "list.json", items))
    assert [record.label for record in clips.records] == [(1, 2), ()]
    assert clips.is_multi_label


RIGHT = {"video": "x.mp4", "candidates": ["a", "b"], "answer": 0}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({**RIGHT, "answer": 2}, "a number from 0 to 1, or a list of 2 zeros and ones, found 2"),
        ({**RIGHT, "answer": True}, "found True"),
        ({**RIGHT, "answer": [1]}, "found [1]"),
        ({**RIGHT, "answer": [0, 1]}, "a number, as the first clip has it"),
        ({**RIGHT, "candidates": ["a"]}, "two or more texts, found ['a']"),
        ({**RIGHT, "candidates": ["a", " "]}, "two or more texts"),
        ({"video": "x.mp4", "answer": 0}, "two or more texts, found None"),
        ({**RIGHT, "video": 3}, "the path or the id of a video, found 3"),
        ({**RIGHT, "video": "../x.mp4"}, "a video inside the root"),
        ([RIGHT], "an object with video, candidates and answer"),
    ],
)
def test_wrong_items_are_listed(item, message, tmp_path):
    with pytest.raises(AnnotationError) as caught:
        read_choices(write(tmp_path / "list.jsonl", [RIGHT, item]))
    assert "list.jsonl:2: expected" in str(caught.value)
    assert message in str(caught.value)


def test_a_list_without_items_and_other_candidates_of_many_answers_are_refused(tmp_path):
    with pytest.raises(AnnotationError, match="at least one clip with candidates, found none"):
        read_choices(write(tmp_path / "list.json", []))
    items = [{"video": "x.mp4", "option": ["a", other], "answer": [0, 1]} for other in ("b", "c")]
    with pytest.raises(AnnotationError, match="the candidates of the first clip"):
        read_choices(write(tmp_path / "list.json", items))
