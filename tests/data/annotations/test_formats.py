"""Annotation files of all formats, good and bad."""

import dataclasses
import json
import pickle
import resource
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_jax.data.annotations.lines import MAX_ENTRY_BYTES
from internvideo_jax.data.annotations.lists import check_annotations, read_annotations
from internvideo_jax.data.annotations.records import AnnotationError, ClipRecord

VIDEO = ClipRecord(id="a/x.mp4", path="/data/a/x.mp4")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path, **arguments: object) -> list[tuple[int | None, str]]:
    """Lines and messages of what is wrong with a file."""
    with pytest.raises(AnnotationError) as info:
        read_annotations(path, **{"root": "/data", **arguments})
    assert str(path) in str(info.value)
    return [(problem.line, str(problem)) for problem in info.value.problems]


# name: (text, format that is told, records)
FILES = {
    "kinetics.csv": ("a/x.mp4,3\nb b/y.mp4,0\n", "csv", [(VIDEO, 3), ("b b/y.mp4", 0)]),
    "mit.csv": ("a/x.mp4 3\r\n\r\nb/y.mp4   0", "csv", [(VIDEO, 3), ("b/y.mp4", 0)]),
    "no_ending.txt": ("a/x\t3\nb c/y\t0\n", "csv", [("a/x", 3), ("b c/y", 0)]),
    "quoted.csv": (
        '"a, b.mp4",3\n"say ""a"".mp4",0\n',
        "csv",
        [("a, b.mp4", 3), ('say "a".mp4', 0)],
    ),
    "anet.csv": (
        "a/x.mp4 120.5 3 9.25 7\na/x.mp4 120.5 9.25 130 7\nb/y.mkv -1 -1 -1 1\n",
        "interval",
        [
            (dataclasses.replace(VIDEO, id="a/x.mp4@3.0-9.25", start=3.0, end=9.25), 7),
            (dataclasses.replace(VIDEO, id="a/x.mp4@9.25-130.0", start=9.25, end=130.0), 7),
            ("b/y.mkv", 1),
        ],
    ),
    "ssv2.txt": (
        "1234 48 17\n77 1 0\n",
        "frames",
        [
            (ClipRecord("1234", "/data/1234", num_frames=48, frame_pattern="img_{:05}.jpg"), 17),
            (ClipRecord("77", "/data/77", num_frames=1, frame_pattern="img_{:05}.jpg"), 0),
        ],
    ),
    "pretrain.txt": (
        "ssv2 a/x.mp4 -1 -1 -1 -1\nk710 b/y.webm 10 2.5 5 4\n",
        "pretrain",
        [
            (dataclasses.replace(VIDEO, source="ssv2"), None),
            (ClipRecord("b/y.webm@2.5-5.0", "/data/b/y.webm", 2.5, 5.0, source="k710"), 4),
        ],
    ),
    "stage2.json": (
        '[{"video": "a/x.mp4", "caption": "one"},\n {"image": "i.jpg", "captions": ["two", "é"],'
        ' "more": 1}, {"video": "a/x.mp4", "caption": "again"}, {"video": "q.mp4"}]\n',
        "json",
        [
            (dataclasses.replace(VIDEO, captions=("one",)), None),
            (ClipRecord("i.jpg", "/data/i.jpg", captions=("two", "é")), None),
            (dataclasses.replace(VIDEO, id="a/x.mp4#2", captions=("again",)), None),
            ("q.mp4", None),
        ],
    ),
    "several_captions.json": (
        '[{"video": "a/x.mp4", "caption": "one", "asr_captions": ["two", "three"],'
        ' "caption_score": 0.5}, {"video": "q.mp4", "audio_caption": "four"}]',
        "json",
        [
            (
                dataclasses.replace(
                    VIDEO,
                    captions=("one", "two", "three"),
                    caption_names=("", "asr_captions", "asr_captions"),
                ),
                None,
            ),
            (
                ClipRecord(
                    "q.mp4", "/data/q.mp4", captions=("four",), caption_names=("audio_caption",)
                ),
                None,
            ),
        ],
    ),
    "named_captions.jsonl": (
        '{"video": "a/x.mp4", "caption": {"sound": "one", "": ["two", "three"]}}',
        "jsonl",
        [
            (
                dataclasses.replace(
                    VIDEO, captions=("one", "two", "three"), caption_names=("sound", "", "")
                ),
                None,
            )
        ],
    ),
    "ours.jsonl": (
        '\ufeff{"video": "a/x.mp4", "label": [1, 4], "id": "first"}\n'
        '{"video": "/data/a/x.mp4", "label": 2, "caption": "c", "start": 1}\n'
        '{"video": "f", "num_frames": 3, "frame_pattern": "{:05}.png", "source": "ssv1"}\n'
        '{"video": "g", "num_frames": 3, "caption": ["c", "d"], "label": []}',
        "jsonl",
        [
            (dataclasses.replace(VIDEO, id="first"), (1, 4)),
            (
                dataclasses.replace(VIDEO, id="/data/a/x.mp4@1.0-", start=1.0, captions=("c",)),
                2,
            ),
            (
                ClipRecord("f", "/data/f", num_frames=3, frame_pattern="{:05}.png", source="ssv1"),
                None,
            ),
            (
                ClipRecord(
                    "g", "/data/g", captions=("c", "d"), num_frames=3, frame_pattern="img_{:05}.jpg"
                ),
                (),
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_named", [False, True], ids=["auto", "named"])
def test_formats(tmp_path, name, is_named):
    text, format_, expected = FILES[name]
    path = write(tmp_path / name, text)
    found = check_annotations(path, root="/data", format=format_ if is_named else "auto")
    assert found.error is None
    assert found.format == format_
    records = [
        dataclasses.replace(
            clip if isinstance(clip, ClipRecord) else ClipRecord(clip, f"/data/{clip}"), label=label
        )
        for clip, label in expected
    ]
    assert list(found.records) == records


def test_json_lines_are_recognised_by_their_contents(tmp_path):
    path = write(tmp_path / "train.txt", '{"video": "a.mp4"}\n')
    assert check_annotations(path).format == "jsonl"
    path = write(tmp_path / "train.json", ' \n[\n{"video": "a.mp4", "caption": "c"}]')
    assert check_annotations(path).format == "json"
    path = write(tmp_path / "lines.json", '{"video": "a.mp4"}\n{"video": "b.mp4"}\n')
    assert check_annotations(path).format == "jsonl"


def test_paths_start_in_the_folder_of_the_file(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", "x/y.mp4,1\n")
    monkeypatch.chdir(tmp_path)
    assert list(read_annotations("a.csv")) == [
        ClipRecord("x/y.mp4", f"{tmp_path}/x/y.mp4", label=1)
    ]


def test_the_pattern_of_frames_can_be_chosen(tmp_path):
    path = write(tmp_path / "ssv1.txt", "12 48 0\n")
    (record,) = read_annotations(path, frame_pattern="{:05}.jpg")
    assert record.frame_pattern == "{:05}.jpg"
    for pattern in ("img.jpg", "{}{}.jpg", "../{}.jpg", "{:0999}.jpg", "{.__class__}", "{:05}/x"):
        with pytest.raises(ValueError, match="one place for the number"):
            read_annotations(path, frame_pattern=pattern)


def test_all_bad_lines_are_listed_at_once(tmp_path):
    lines = [
        "good.mp4,1",
        "no label.mp4",
        "x.mp4,one",
        "y.mp4,4",
        "z.mp4,-1",
        "a.mp4,1,2",
        "../out.mp4,1",
        "good.mp4,2",
        "/elsewhere/b.mp4,1",
        "/data/../etc/c.mp4,1",
        "https://host/d.mp4,1",
        ",1",
        "e.mp4,1_0",
        "f.mp4,²",
        "fine.mp4,3",
        "./sub/../also fine.mp4,3",
    ]
    path = write(tmp_path / "train.csv", "\n".join(lines))
    found = check_annotations(path, root="/data", num_classes=4, format="csv")
    assert [r.path for r in found.records] == [
        "/data/good.mp4",
        "/data/fine.mp4",
        "/data/also fine.mp4",
    ]
    named = {
        2: "expected 2 columns (path, label), found 1: ['no label.mp4']",
        3: "expected a label: an integer from 0, as most in this file, found 'one'",
        4: "expected a label from 0 to 3, found 4",
        5: "expected a label: an integer from 0, found '-1'",
        6: "found 3: ['a.mp4', '1', '2']; put paths with the separator in them in double quotes",
        7: "inside the root /data (--root or root= names another), found '../out.mp4'",
        8: "found 'good.mp4' again, first on line 1",
        9: "inside the root /data (--root or root= names another), found '/elsewhere/b.mp4'",
        10: "inside the root /data (--root or root= names another), found '/data/../etc/c.mp4'",
        11: "expected the path of a local file, found 'https://host/d.mp4'",
        12: "expected the path of a local file, found ''",
        13: "found '1_0'",
        14: "found '²'",
    }
    messages = dict(problems(path, num_classes=4))
    assert messages.keys() == named.keys()
    assert all(part in messages[line] for line, part in named.items())
    with pytest.raises(AnnotationError) as info:
        read_annotations(path, root="/data", num_classes=4)
    message = str(info.value)
    assert message.startswith(f"{path}: 13 of 16 entries are wrong\n")
    assert f"\n  {path}:4: expected a label from 0 to 3, found 4\n" in message


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
        ('{"video": "a", "caption": {"b": 1, "b": 2}}', "found {'b': 2}"),
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


@pytest.mark.parametrize(
    ("format_", "line", "expected"),
    [
        ("interval", "a.mp4 10 x 3 1", "expected seconds, found 'x'"),
        ("interval", "a.mp4 10 nan 3 1", "0 <= start < end in seconds, found nan and 3.0"),
        ("interval", "a.mp4 10 4 3 1", "0 <= start < end in seconds, found 4.0 and 3.0"),
        ("interval", "a.mp4 10 12 13 1", "a start before the end of the file, 10 s, found 12 s"),
        ("interval", "a.mp4 10 -1 3 1", "0 <= start < end in seconds, found -1.0 and 3.0"),
        ("interval", "a b.mp4 10 1 3 1", "total time, start, end, label), found 6"),
        ("pretrain", "a.mp4 10 1 3 1", "expected 6 columns (source, path, total time,"),
        ("pretrain", "s a.mp4 10 1 3 -2", "a label: an integer from 0, found '-2'"),
        ("frames", "folder 1", "expected 3 columns (folder, number of frames, label)"),
        ("frames", "folder 5 1 3 5", "jsonl holds several labels, other columns have no place"),
        ("frames", "folder 2 3 7", "found 4: ['folder', '2', '3', '7']; jsonl holds"),
        ("frames", "folder few 1", "a number of frames: an integer from 0, found 'few'"),
        ("frames", "folder 0 1", "at least 1 frame in the folder, found 0"),
    ],
)
def test_bad_columns(tmp_path, format_, line, expected):
    path = write(tmp_path / "a.txt", line)
    ((number, message),) = problems(path, format=format_, separator=" ")
    assert number == 1
    assert expected in message


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.mp4,1\n",
        "Class ; Video\n1 ; a.mp4\n",
        "video\tlabel\tstart\tcaption\na.mp4\t1\t\t\n",
        "\nid label path\na.mp4 1 a.mp4\n",
    ],
)
def test_a_header_names_the_columns(tmp_path, text):
    found = check_annotations(write(tmp_path / "a.csv", text), root="/data")
    assert (found.format, found.error) == ("csv", None)
    assert list(found.records) == [ClipRecord("a.mp4", "/data/a.mp4", label=1)]


def test_all_columns_of_a_header(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "path,label,start,end,caption,source,num_frames,id\n"
        'a.mp4,wave,1.5,3,"a man, waving",k400,,\nfolder,,,,,,3,f\nb.mp4,sit\n',
    )
    found = check_annotations(path, root="/data")
    wave = ClipRecord("a.mp4@1.5-3.0", "/data/a.mp4", 1.5, 3.0, "wave", ("a man, waving",))
    assert list(found.records) == [
        dataclasses.replace(wave, source="k400"),
        ClipRecord("f", "/data/folder", num_frames=3, frame_pattern="img_{:05}.jpg"),
    ]
    assert [problem.line for problem in found.error.problems] == [4]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("path,label,split\na.mp4,1,val\n", "found 'split'; rename or remove that column"),
        ("path,class,label\na.mp4,1,1\n", "each thing once"),
        ("label,caption\n1,a\n", "each thing once, found 'label,caption'"),
        ("name,action\na.mp4,1\n", "the first line 'name,action'; name the columns so"),
        ("name,action\na.mp4,sit\nb.mp4,run\n", "the first line 'name,action'"),
        ("clip total start end which\na.mp4 9 1 2 3\n", "the first line 'clip total start"),
    ],
)
def test_other_headers_are_refused(tmp_path, text, found):
    ((line, message),) = problems(write(tmp_path / "a.csv", text))
    assert line is None
    assert found in message
    assert "columns of path, video, " in message


@pytest.mark.parametrize(
    ("text", "format_"),
    [
        ("a.mp4,clap hands\nb.mkv,3D printing\n", "csv"),
        ("b.mkv walk\na.mp4 sit\n", "csv"),
        ("a.mp4 10 1 2 walk\nb.mp4 10 1 2 sit\n", "interval"),
        ("k400 a.mp4 -1 -1 -1 walk\nk400 b.mp4 10 1 2 sit\n", "pretrain"),
        ("a 10 walk\nb 7 sit\n", "frames"),
        ('{"video": "a", "label": "walk"}\n{"video": "b", "label": ["sit", "eat"]}\n', "jsonl"),
        ('{"video": "a", "label": []}\n{"video": "b", "label": ["sit"]}\n', "jsonl"),
    ],
)
def test_labels_may_be_names(tmp_path, text, format_):
    path = write(tmp_path / "a.txt", text)
    found = check_annotations(path)
    assert (found.format, found.error) == (format_, None)
    given = [record.label for record in found.records]
    labels = [name for label in given for name in (label if isinstance(label, tuple) else [label])]
    assert labels
    assert found.records.class_names == tuple(sorted(labels))
    assert len(read_annotations(path, classes=[*labels, "dance"])) == 2
    assert "or names of the classes with it, found the name" in problems(path, num_classes=9)[0][1]
    others = problems(path, classes=[*labels[:-1], f"{labels[-1]}s"])
    assert f"found '{labels[-1]}'; did you mean '{labels[-1]}s'?" in others[-1][1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.mp4,walk\nb.mp4,3\nc.mp4,sit\n", "the name of a class, as most in this file, found 3"),
        ("a.mp4,walk\nb.mp4,-1\nc.mp4,sit\n", "found '-1'"),
        ("a.mp4,walk\nb.mp4,nan\nc.mp4,sit\n", "found 'nan'"),
        ("a.mp4,walk\nb.mp4,\nc.mp4,sit\n", "found ''"),
        (f"a.mp4,walk\nb.mp4,{'x' * 501}\nc.mp4,sit\n", "the name of a class, found 'xxx"),
        ('{"video": "a", "label": "b"}\n{"video": "c", "label": " d"}\n', "found ' d'"),
        ('{"video": "a", "label": "b"}\n{"video": "c", "label": "\\u001b[31m"}\n', "x1b"),
    ],
)
def test_labels_that_are_no_names(tmp_path, text, found):
    ((line, message),) = problems(write(tmp_path / "a.txt", text))
    assert line == 2
    assert found in message


def test_more_names_than_there_are_classes(tmp_path, monkeypatch):
    for module in ("entry_file", "lists"):
        monkeypatch.setattr(f"internvideo_jax.data.annotations.{module}.MAX_NAMES", 9)
    path = write(tmp_path / "a.csv", "".join(f"{i}.mp4,class {i}\n" for i in range(9)))
    assert len(read_annotations(path).class_names) == 9
    write(path, "".join(f"{i}.mp4,class {i}\n" for i in range(12)))
    assert problems(path) == [
        (None, "expected labels of at most 9 classes, found more different names")
    ]


def test_quotes_of_csv(tmp_path):
    path = write(tmp_path / "a.csv", '"base.mp4" ,3\n "more, c.mp4" , 4 \n')
    assert [record.path for record in read_annotations(path, root="/data")] == [
        "/data/base.mp4",
        "/data/more, c.mp4",
    ]
    long = "x" * 140_000
    path = write(tmp_path / "b.csv", f'a"x\rb,1\ngood.mp4,1\n"{long}",1\nb.mp4,2\n"open.mp4,1\n')
    found = problems(path, format="csv")
    assert [line for line, _ in found] == [1, 3, 5]
    assert "a carriage return" in found[0][1]
    assert "field larger than field limit" in found[1][1]


def test_lines_that_end_in_carriage_returns_alone(tmp_path):
    path = write(tmp_path / "a.csv", "a.mp4,1\rb.mp4,2\r")
    assert problems(path) == [
        (None, "expected lines that end in a line feed, found a carriage return in one (line 1)")
    ]


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a\nb\n", "'a'"),
        ("a b c\n", "'a b c'"),
        ("a 1 2 3 4\nb.mp4 1 2 3 4\n", "1 2 3 4'"),
        ("a.mp4,0\nb.mp4 and no label\n", "'b.mp4 and no label'"),
    ],
)
def test_a_format_that_cannot_be_told_is_asked_for(tmp_path, text, quoted):
    ((line, message),) = problems(write(tmp_path / "a.txt", text))
    assert line is None
    assert "name it with --format" in message
    assert quoted in message


def test_the_listing_is_short_and_counts_the_rest(tmp_path):
    path = write(tmp_path / "a.csv", "".join(f"{i}.mp4,9\n" for i in range(5000)))
    with pytest.raises(AnnotationError) as info:
        read_annotations(path, num_classes=9)
    assert str(info.value).count("\n") == 21
    assert str(info.value).endswith("\n  and 4980 more")
    assert (info.value.num_problems, info.value.num_entries) == (5000, 5000)
    assert len(info.value.problems) == 1000
    copy = pickle.loads(pickle.dumps(info.value))
    assert str(copy) == str(info.value)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.csv", "", "expected at least one clip, found an empty file"),
        ("a.csv", " \n\n", "expected at least one clip, found an empty file"),
        ("a.jsonl", "", "expected at least one clip, found none"),
        ("a.json", "[]", "expected at least one clip, found none"),
        ("a.json", "", "expected '[' of a JSON list, found the end of the file"),
    ],
)
def test_empty_files(tmp_path, name, text, found):
    ((_, message),) = problems(write(tmp_path / name, text))
    assert message == found


def test_what_is_no_file(tmp_path):
    assert problems(tmp_path / "none.csv") == [
        (None, "expected an annotation file, found No such file or directory")
    ]
    assert problems(tmp_path) == [(None, "expected an annotation file, found a folder")]
    assert problems(Path("/dev/zero"))[0][1].endswith("found a device or pipe")


def test_text_that_is_not_utf8(tmp_path):
    path = write(tmp_path / "a.csv", b"a.mp4,1\n\xff\xfe.mp4,1\nb.mp4,2\n")
    assert problems(path) == [(2, "expected UTF-8 text, found the byte 0xff")]
    path = write(tmp_path / "b.csv", "a.mp4,1\n".encode("utf-16"))
    found = "UTF-16 or UTF-32; save it as UTF-8"
    assert problems(path) == [(None, f"expected UTF-8 text, found {found}")]
    path = write(tmp_path / "c.csv", "a.mp4,1\nb.mp4,1\n".encode("utf-16-le"))
    assert "found a zero byte, as of UTF-16" in problems(path)[0][1]
    path = write(tmp_path / "a.json", b'[{"video": "a.mp4"},\n {"video": "\xe9"}]')
    assert problems(path)[-1] == (1, "expected UTF-8 text, found the byte 0xe9")


def test_a_giant_line_is_never_held(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.write(b"a.mp4,1\n")
        # Sparse: 256 MiB of zeros that takes no room on disk.
        file.truncate(2**28)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert problems(path, format="csv") == [
        (2, f"expected a line of at most {MAX_ENTRY_BYTES} bytes, found a longer one")
    ]
    # In KiB on Linux.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17


@pytest.mark.parametrize(
    ("name", "start", "what"),
    [
        ("a.jsonl", '{"video": "a"}\n{"video": "', "a line"),
        ("a.json", '[{"video": "a"},\n{"video": "', "an item"),
    ],
)
def test_long_entries_are_refused(tmp_path, name, start, what):
    path = write(tmp_path / name, f'{start}{"x" * 4 * MAX_ENTRY_BYTES}"}}\n{{"video": "b"}}]')
    message = f"expected {what} of at most {MAX_ENTRY_BYTES} bytes, found a longer one"
    assert problems(path)[0] == (2, message)


def test_missing_files_are_found_if_asked(tmp_path):
    (tmp_path / "here.mp4").touch()
    (tmp_path / "folder").mkdir()
    path = write(
        tmp_path / "a.jsonl",
        '{"video": "here.mp4"}\n{"video": "gone.mp4"}\n{"video": "folder"}\n'
        '{"video": "here.mp4", "id": "h", "num_frames": 2}\n',
    )
    assert len(read_annotations(path)) == 4
    assert problems(path, root=None, check_files=True) == [
        (2, f"expected a file at {tmp_path}/gone.mp4, found nothing there"),
        (4, f"expected a folder of images at {tmp_path}/here.mp4, found a file"),
    ]


def test_links_in_the_root_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.mp4").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "disk")
    path = write(tmp_path / "a.csv", "link/a.mp4,1\n")
    (record,) = read_annotations(path, root=tmp_path / "root", check_files=True)
    assert record.path == f"{tmp_path}/root/link/a.mp4"


def test_the_root_of_the_disk_admits_all(tmp_path):
    path = write(tmp_path / "a.csv", "/x/a.mp4,1\n/y/../b.mp4,1\n")
    assert [r.path for r in read_annotations(path, root="/")] == ["/x/a.mp4", "/b.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "xml"}, "expected a format of annotations"),
        ({"separator": ", "}, "expected one character as the separator"),
        ({"separator": ""}, "expected one character"),
    ],
)
def test_useless_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_annotations(write(tmp_path / "a.csv", "a.mp4,1\n"), **arguments)


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
