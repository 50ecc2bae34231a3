"""Lists of zero-shot classification and multiple choice that others than `annotations` read."""

import json
from pathlib import Path

from internvideo_jax.data.annotations.choices import read_choices
from internvideo_jax.data.annotations.classified import read_classified
from tests.fuzz.harness import Target

ACTIONS = 'A1,"One, two.",c000 0.5 2.25;c002 1 3\nB2,é,\n'
CHOICES = (
    [{"video": "a.mp4", "candidates": ["one", "é"], "answer": 1, "more": {}}],
    [{"video": "b/c", "option": ["one", "two"], "answer": [0, 1]}],
)


def _read_actions(data: bytes, folder: Path) -> None:
    (folder / "a.csv").write_bytes(b"id,script,actions\n" + data)
    clips = read_classified(folder / "a.csv", root="/d", classes=("c000 One", "c001", "c002 é"))
    for record in clips.records:
        assert f"{record.path}/".startswith("/d/")
        assert set(record.label) <= {0, 1, 2}


def _read_choices(data: bytes, folder: Path) -> None:
    (folder / "a.json").write_bytes(data)
    for record in read_choices(folder / "a.json", root="/d").records:
        assert f"{record.path}/".startswith("/d/")
        assert len(record.captions) > 1


TARGETS = (
    Target(
        "charades_text",
        lambda: [ACTIONS.encode()],
        _read_actions,
        tokens=(b'"', b",", b";", b"\r", b"\n", b"c001 ", b"../", b"\xef\xbb\xbf"),
        weight=0.5,
    ),
    Target(
        "choices_json",
        lambda: [json.dumps(value).encode() for value in CHOICES],
        _read_choices,
        tokens=(b'"answer": ', b'"candidates": ', b"\\ud800", b"\\u0000", b"[" * 100, b'"../'),
        weight=0.5,
    ),
)
