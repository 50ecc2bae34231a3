"""Lines parsed many at a time are read as lines parsed one by one."""

import json
import random

import pytest

from internvideo_jax.data.annotations import building, columns, lines, lists
from internvideo_jax.data.annotations.formats import TEXT_FORMATS

# fmt: off
PATHS = (
    "a.mp4", "b/c d.mkv", "é/視頻.webm", "x.wav", "folder", "/data/e.mp4", "/data/../f.mp4",
    "/g.mp4", "./h.mp4", "../data/i.mp4", "../out.mp4", "j//k.mp4", ".hidden/l.mp4", "m/", "", ".",
    "/data", "http://n.mp4", "..o/p.mp4", "q\u00a0r.mp4", "s\u3000", "t.WAV", "#2", "a.mp4#2",
)
NUMBERS = (
    "0", "1", "-1", "2.5", "9.25", "0.1", "123456789.123456789", "-0", "-0.0", "1e3", "1E2", "NaN",
    "Infinity", "1e400", "9" * 20, "9" * 400, "007", "+1", ".5", "5.", "1_0", "", " 3", "nan",
    "3.0",
)
LABELS = (
    *"0123", "-1", "1.0", "2147483647", "2147483648", "true", "null", '"1"', "[1, 4]", "[]", "[2]",
    "[1, 1]", "[1, null]", "[1.5]", "[[1]]", "{}", "9" * 30, "-0", "one", "²", " 2 ", "1" * 9,
)
TEXTS = (
    "", "one", 'say "x"', "back\\slash", "tab\tin", "\u2028", "😀", "null", '"label": [', "\x7f",
)
RAW = (
    '"\\ud800"', '"\\udc00"', '"\\ud83d\\ude00"', '"a\tb"', '"a\x01b"', '"\\x"', '"\\u0000"', "1",
)
# fmt: on
PATTERNS = ('"{:05}.png"', '"{}{}"', '"img.jpg"', "null", "7", '"{0.x}"')


def json_line(rng: random.Random) -> str:
    """An object, right or wrong in one way or another."""
    quoted = lambda text: json.dumps(text, ensure_ascii=rng.random() < 0.5)  # noqa: E731
    fields = [("video", quoted(f"{rng.randrange(40)}/{rng.choice(PATHS)}"))]
    odd = rng.random() < 0.3
    if odd and rng.random() < 0.5:
        fields = [(rng.choice(("video", "audio", "Video")), quoted(rng.choice(PATHS)))]
    kinds = {
        "label": LABELS if odd else ("1", "2", "[0, 3]"),
        "caption": (
            *map(quoted, TEXTS),
            f"[{quoted('a')}, {quoted('b')}]",
            *(("[]", "[null]", "[1]", "null", *RAW) if odd else ()),
        ),
        "start": NUMBERS if odd else ("0", "1.5", "null"),
        "end": NUMBERS if odd else ("2", "30"),
        "id": (*map(quoted, TEXTS), "null", *RAW) if odd else (quoted(f"é{rng.random()}"),),
        "source": ('"ssv2"', *(("null", "3") if odd else ())),
    }
    fields += [(k, rng.choice(v)) for k, v in kinds.items() if rng.random() < 0.3]
    if rng.random() < 0.2:
        fields = [field for field in fields if field[0] not in ("start", "end")]
        fields.append(
            ("num_frames", rng.choice(("3", "0", "-1", "2.0", "null") if odd else ("7",)))
        )
        fields.append(("frame_pattern", rng.choice(PATTERNS if odd else PATTERNS[:1])))
    if odd and rng.random() < 0.2:
        fields.append(rng.choice((fields[0], ("extra", "1"), ("i\\u0064", "null"))))
    space = rng.choice(("", " ", "\t"))
    line = f",{space}".join(f'"{key}":{space}{value}' for key, value in fields)
    wrong = ("{%s} {}", "{%s", "[{%s}]", "{%s}x", "\ufeff{%s}", "\x0b{%s}", "\u00a0{%s} ", "{%s}{}")
    whole = rng.choice(wrong) if odd and rng.random() < 0.2 else "{%s}"
    return whole.replace("%s", line)


def text_line(rng: random.Random, name: str, mark: str) -> str:
    """Columns of a text format, right or wrong in one way or another."""
    odd = rng.random() < 0.3
    label = rng.choice(LABELS) if odd else str(rng.randrange(5))
    path = rng.choice(PATHS) if odd else f"{rng.randrange(60)}/{rng.choice(('a.mp4', 'ü.webm'))}"
    numbers = NUMBERS if odd else ("10", "20.5", "3")
    total, start, end = (rng.choice(numbers) for _ in range(3))
    if rng.random() < 0.3:
        total, start, end = rng.choice(("-1", "7.5")), "-1", "-1"
    row = {
        "csv": [path, label],
        "interval": [path, total, start, end, label],
        "pretrain": [rng.choice(("ssv2", "k7 10", "")), path, total, start, end, label],
        "frames": [path, total if odd else "12", *["note"] * rng.randrange(3), label],
    }[name]
    if odd and rng.random() < 0.1:
        row.insert(rng.randrange(len(row)), "more")
    if odd and rng.random() < 0.2:
        row[0] = f'"{row[0]}"'
    space = rng.choice(("", "", " ", "\t", "\x1c")) if odd else ""
    return space + (mark + space).join(row) + space


def mixed(rng: random.Random, made: list[str]) -> bytes:
    """Lines as a file may hold them."""
    parts = []
    for line in made:
        data = line.encode("utf-8", "surrogatepass")
        if rng.random() < 0.01:
            data = rng.choice((b"", b" \t", b"\xc2\xa0", b"\xff" + data, data + b" " * 70, b"\r"))
        parts.append(data + rng.choice((b"\n", b"\n", b"\r\n", b" \n")))
    return b"\xef\xbb\xbf" * (rng.random() < 0.2) + b"".join(parts).rstrip(b"\n")


@pytest.mark.parametrize("name", ["jsonl", *TEXT_FORMATS])
@pytest.mark.parametrize("num_classes", [None, 4])
@pytest.mark.parametrize("seed", range(6))
def test_both_ways_agree(tmp_path, monkeypatch, name, num_classes, seed):
    rng = random.Random(f"{name}{num_classes}{seed}")
    mark = ", \t;"[seed % 4]
    made = [
        json_line(rng) if name == "jsonl" else text_line(rng, name, mark)
        for _ in range(rng.choice((5, 200, 600)))
    ]
    path = tmp_path / "list"
    path.write_bytes(mixed(rng, made))
    monkeypatch.setattr(lines, "BLOCK_BYTES", rng.choice((256, 5000, 2**22)))
    monkeypatch.setattr(lines, "MAX_ENTRY_BYTES", 400)
    monkeypatch.setattr(building, "MAX_ENTRY_BYTES", 400)

    def read(home: str) -> tuple[object, ...]:
        monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / home))
        found = lists.check_annotations(
            path, root="/data", format=name, separator=mark, num_classes=num_classes
        )
        problems = found.error and (found.error.problems, found.error.num_problems)
        assert found.error is None or found.error.num_entries >= len(found.records)
        return list(found.records), problems, found.records.summary

    fast = read("fast")
    monkeypatch.setattr(columns, "from_lines", lambda *_: columns.from_entries([]))
    assert fast == read("slow")
