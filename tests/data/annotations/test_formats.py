"""Annotation files of all formats, good and bad."""

import dataclasses
import pickle
import resource
from pathlib import Path

import pytest

from internvideo_jax.data.annotations.lines import MAX_ENTRY_BYTES
from internvideo_jax.data.annotations.lists import check_annotations, read_annotations
from internvideo_jax.data.annotations.records import AnnotationError, ClipRecord
from tests.data.annotation_files import problems, write

VIDEO = ClipRecord(id="a/x.mp4", path="/data/a/x.mp4")


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


def test_paths_start_in_the_folder_of_the_file(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", "x/y.mp4,1\n")
    monkeypatch.chdir(tmp_path)
    assert list(read_annotations("a.csv")) == [
        ClipRecord("x/y.mp4", f"{tmp_path}/x/y.mp4", label=1)
    ]


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


def test_more_names_than_there_are_classes(tmp_path, monkeypatch):
    for module in ("entry_file", "lists"):
        monkeypatch.setattr(f"internvideo_jax.data.annotations.{module}.MAX_NAMES", 9)
    path = write(tmp_path / "a.csv", "".join(f"{i}.mp4,class {i}\n" for i in range(9)))
    assert len(read_annotations(path).class_names) == 9
    write(path, "".join(f"{i}.mp4,class {i}\n" for i in range(12)))
    assert problems(path) == [
        (None, "expected labels of at most 9 classes, found more different names")
    ]


def test_lines_that_end_in_carriage_returns_alone(tmp_path):
    path = write(tmp_path / "a.csv", "a.mp4,1\rb.mp4,2\r")
    assert problems(path) == [
        (None, "expected lines that end in a line feed, found a carriage return in one (line 1)")
    ]


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


def test_what_is_no_file(tmp_path):
    ((line, missing),) = problems(tmp_path / "none")
    assert line is None
    assert "a folder with one for each class, found No such file or directory" in missing
    (tmp_path / "a.MP4").write_bytes(b"\xa0")
    assert "found a video" in problems(tmp_path / "a.MP4")[0][1]
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
