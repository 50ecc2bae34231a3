"""Annotations in JSON, good and bad."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_jax.data.annotations.json_entries import parse_jsonl, plain_jsonl_entries
from internvideo_jax.data.annotations.lists import check_annotations, read_annotations
from tests.data.annotation_files import problems, write


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[1]", "expected a JSON object, found [1]"),
        ('{"video": "a"', "expected JSON, found Expecting ',' delimiter near '{\"video\": \"a\"'"),
        ('{"label": 1}', 'expected a key "video" or "audio", found none'),
        ('{"video": "a", "audio": "b.wav"}', 'a key "video" or "audio", found video and audio'),
        ('{"video": 1}', 'expected "video": a string of Unicode text, found 1'),
        ('{"video": "\\ud800"}', "expected strings of Unicode text, found '\\ud800'"),
        ('{"video": "a\\u0000"}', "expected the path of a local file, found 'a\\x00'"),
        ('{"video": "a", "lable": 1}', "found 'lable'; did you mean 'label'?"),
        ('{"video": "a", "label": true}', '"label": an integer from 0 or the name of a class, or'),
        ('{"video": "a", "label": 1.0}', "found 1.0"),
        ('{"video": "a", "label": -1}', "found -1"),
        ('{"video": "a", "label": [1, 1]}', "different ones, found [1, 1]"),
        ('{"video": "a", "label": 1e400}', "found inf"),
        ('{"video": "a", "label": [2, 9]}', "expected a label from 0 to 8, found 9"),
        ('{"video": "a"}', "expected a label from 0 to 8, found none"),
        ('{"video": "a", "caption": [1]}', '"caption": a string, a list of strings, or an object'),
        ('{"video": "a", "caption": {"sound": [1]}}', "these by name, found {'sound': [1]}"),
        ('{"video": "a", "start": "1"}', "expected \"start\": seconds, found '1'"),
        ('{"video": "a", "start": 3, "end": 2, "label": 1}', "start < end in seconds, found 3.0"),
        ('{"video": "a", "start": NaN, "label": 1}', "start < end in seconds, found nan"),
        ('{"video": "a", "end": Infinity, "label": 1}', "in seconds, found None and inf"),
        ('{"video": "a", "start": -1, "label": 1}', "start < end in seconds, found -1.0"),
        (f'{{"video": "a", "end": 1{"0" * 400}}}', 'expected "end": seconds, found 1000'),
        ('{"video": "a", "frame_pattern": "{}.jpg"}', 'expected "num_frames" beside'),
        ('{"video": "a", "num_frames": 0, "label": 1}', "at least 1 frame in the folder, found 0"),
        ('{"video": "a", "num_frames": 2, "frame_pattern": "{0.x}"}', "one place for the number"),
        ('{"video": "a", "num_frames": 2, "end": 1, "label": 1}', "no times for a folder"),
        ('{"video": "a", "label": 0, "label": 1}', "each key once, found 'label' twice"),
        ('{"video": "a:b", "label" : 0, "label"\t:1}', "each key once, found 'label' twice"),
        ('{"video": "a", "caption": {"b": 1, "b": 2}}', "each key once, found 'b' twice"),
        ('{"video": "a", "id": ""}', "expected \"id\": a string that is not empty, found ''"),
        ('{"audio": "a.wav", "num_frames": 3}', 'no "num_frames" beside "audio", found 3'),
        ('{"video": "a", "label": ["b", 1]}', "a list of different ones, found ['b', 1]"),
        (
            '{"video": "a", "label": "yoga"}',
            "an integer from 0, as most in this file, found 'yoga'",
        ),
        ("[" * 10_000, "nested too deeply"),
        (f'{{"label": 1{"0" * 5000}}}', "numbers too long"),
    ],
)
def test_bad_json_lines(tmp_path, line, expected):
    path = write(tmp_path / "a.jsonl", f'{{"video": "good", "label": 1}}\n{line}\n')
    ((number, message),) = problems(path, num_classes=9)
    assert number == 2
    assert expected in message


def test_a_line_holds_one_object(tmp_path):
    two_and_a_half = '{"video": "a"} {"video": "b"}\n{"video":\n"c"}\n'
    lines = [line for line, _ in problems(write(tmp_path / "c.jsonl", two_and_a_half))]
    assert lines == [1, 2, 3]


def test_unusual_lines_do_not_change_what_others_state(tmp_path):
    unusual = ['{"video" : "a"}', "", '{"video": "b", "caption": "a\\": b\\\\"}', ' {"video": "c"}']
    records = read_annotations(write(tmp_path / "c.jsonl", "\n".join(unusual)))
    assert [(record.id, record.captions) for record in records] == [
        ("a", ()),
        ("b", ('a": b\\',)),
        ("c", ()),
    ]


def test_named_captions_are_nothing_unusual():
    """A line that is needs several times as long."""
    line = '{"video":"a","caption":{"sound":"b","speech \\"":["c","d"]}}'
    entries = plain_jsonl_entries(f"{line}\n{line}\n".encode())
    assert entries == 2 * [parse_jsonl(line)]
    assert entries[0].captions == ("b", "c", "d")
    assert entries[0].caption_names == ("sound", 'speech "', 'speech "')


@pytest.mark.parametrize("caption", ['{"a": "b", "a": "c"}', r'{"a\\": "b", "c": "d", "c": "e"}'])
def test_each_name_of_captions_stands_once(tmp_path, caption):
    lines = f'{{"video": "a", "caption": {caption}}}\n{{"video": "b"}}\n'
    ((number, message),) = problems(write(tmp_path / "c.jsonl", lines))
    assert number == 1
    assert "each key once" in message


@pytest.mark.parametrize(
    ("text", "records", "expected"),
    [
        (
            '[{"video": "a"}, 3, {"sound": "b"}, {"video": "c"}, {"audio": "a.mp4"}]',
            2,
            ["a JSON object", '"image" or "audio"', "a file of sound (.wav"],
        ),
        ('[{"video": "a", "video": "b"}, {"video": "c"}]', 1, ["key once, found 'video' twice"]),
        ('[{"video": "a"},\n{"video": ]', 1, ["expected JSON"]),
        ('[{"video": "a"}\n{"video": "b"}]', 1, ["']' of a JSON list"]),
        ('[{"video": "a"}', 1, ["']' of a JSON list"]),
        ('[{"video": "a"}] and more', 1, ["the end after the list, found 'and more'"]),
        ('[{"video": "a"},]', 1, ["expected JSON"]),
        ('[{"video": "a", "video_start_frame": 3}]', 0, ['"start" and "end" in seconds']),
        ('{"video": "a"}', 0, ["'[' of a JSON list"]),
    ],
)
def test_bad_json_lists(tmp_path, text, records, expected):
    path = write(tmp_path / "a.json", text)
    found = check_annotations(path, format="json")
    assert len(found.records) == records
    assert found.error is not None
    messages = [str(problem) for problem in found.error.problems]
    assert len(messages) == len(expected)
    assert all(part in message for part, message in zip(expected, messages, strict=True))


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(1, 200))
def test_json_lists_longer_than_a_piece(tmp_path_factory, seed, padding):
    # Items, escapes and characters of several bytes are cut wherever a piece ends.
    text = 'é\\"𝄞\n' + string.ascii_letters * padding
    items = [{"video": f"{i}", "caption": text[i % 7 :], "n": -seed * i} for i in range(5)]
    data = json.dumps(items, ensure_ascii=seed % 2 == 0, indent=seed % 3 or None)
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    path.write_text(data, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("internvideo_jax.data.annotations.lines.PIECE_BYTES", 1 + seed)
        records = read_annotations(path)
    assert [record.captions for record in records] == [(item["caption"],) for item in items]


def test_lines_of_json_items(tmp_path):
    path = write(tmp_path / "a.json", '[\n{"video": "a"},\n\n{"video":\n"a"}, 1\n, 2]')
    assert [line for line, _ in problems(path)] == [5, 6]
