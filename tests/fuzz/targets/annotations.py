"""Annotation files of every format, and the records and indices of shards."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from internvideo_jax.data.annotations.lists import read_annotations
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.annotations.retrieval import read_retrieval
from internvideo_jax.data.sources.shards import FORMAT, check_shards, decode_clip, encode_clip
from tests.fuzz.harness import Target

TEXTS = (
    "a/x.mp4,3\nb b/y.mp4,0\n",
    'path,label,caption\n"a, b.mp4",clap hands,"one ""two"""\n',
    "split,path,label,target\ntrain,a.mp4,3,\n",
    "a/x.mp4 120.5 3 9.25 7\nb/y.mkv -1 -1 -1 1\n",
    "1234 48 17\n77 1 0\n",
    "ssv2 a/x.mp4 -1 -1 -1 -1\nk710 b/y.webm 10 2.5 5 4\n",
)
LINES = (
    {"video": "a.mp4", "label": [1, 4], "id": "first", "source": "k400"},
    {"video": "/d/a.mp4", "label": 2, "caption": ["c", "é"], "start": 1.5, "end": 2},
    {"video": "f", "num_frames": 3, "frame_pattern": "{:05}.png"},
    {"audio": "a.wav"},
)
ITEMS = [
    {"video": "a.mp4", "caption": "one"},
    {"image": "i.jpg", "captions": ["two", "é"], "more": 1},
    {"video": "a.mp4", "caption": "again"},
]
# Of benchmarks of retrieval.
CAPTIONS = (
    ITEMS,
    [{"video": ["a.mp4", "b.mp4"], "caption": ["one"]}],
    [{"video": "x.avi", "description": "one", "times": [[0, 1]]}],
    [{"videoID": "x_000001_000011", "enCap": ["one", "two"], "chCap": ["é"]}],
    {"videos": [{"video_id": "v1"}], "sentences": [{"video_id": "v1", "caption": "one"}]},
    {"v_1": {"duration": 8.5, "timestamps": [[0, 3]], "sentences": ["One.", "Two."]}},
    {"v1": [["a", "bird"], "a bird"]},
)
CAPTION_LINES = (
    'key,vid_key,video_id,sentence\nret0,msr1,video1,"one, two"\n',
    "1012_X_00.05.16\t00:05\t00:06\t00:05\t00:06\tSOMEONE walks.\n",
    "mv89_33_46 a bird is bathing\n",
)
CONTENT = b"no records, but as many bytes"
SHARD = {
    "name": "a.array_record",
    "records": 1,
    "bytes": len(CONTENT),
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
}


def _read(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        # Lists are kept there, too.
        os.environ["INTERNVIDEO_HOME"] = str(folder / "home")
        (folder / name).write_bytes(data)
        for record in read_annotations(folder / name, root="/d"):
            assert f"{record.path}/".startswith("/d/")

    return read


def _read_captions(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data)
        for record in read_retrieval(folder / name, root="/d").records:
            assert f"{record.path}/".startswith("/d/")
            assert all(caption.strip() for caption in record.captions)

    return read


def _read_index(data: bytes, folder: Path) -> None:
    (folder / "index.json").write_bytes(data)
    (folder / SHARD["name"]).write_bytes(CONTENT)
    check_shards(folder)


def _records() -> list[bytes]:
    video = ClipRecord("a", "a", 0.5, 2.0, 3, ("one", "é"), source="k400")
    images = ClipRecord("b", "b", label=("x", "y"), num_frames=2, frame_pattern="{}.jpg")
    return [encode_clip(video, b"video"), encode_clip(images, (b"one", b"three"))]


TARGETS = (
    Target(
        "annotations_text",
        lambda: [text.encode() for text in TEXTS],
        _read("a.txt"),
        tokens=(b'"', b",", b"\t", b"\r", b"\n", b"-1 ", b"../", b"path,label\n", b"\xef\xbb\xbf"),
        weight=1,
    ),
    Target(
        "annotations_jsonl",
        lambda: ["".join(json.dumps(line) + "\n" for line in LINES).encode()],
        _read("a.jsonl"),
        tokens=(b'"num_frames": ', b'"label": ', b"\\ud800", b"\\u0000", b"../", b"\n"),
        weight=0.5,
    ),
    Target(
        "annotations_json",
        lambda: [json.dumps(ITEMS).encode(), json.dumps(ITEMS, indent=1).encode()],
        _read("a.json"),
        tokens=(b'"video": ', b'"captions": ', b"\\ud800", b"\n", b"[" * 100),
        weight=0.5,
    ),
    Target(
        "retrieval_json",
        lambda: [json.dumps(value).encode() for value in CAPTIONS],
        _read_captions("a.json"),
        tokens=(b'"video": ', b'"caption": ', b"\\ud800", b"\\u0000", b"[" * 100, b'"../'),
        weight=0.5,
    ),
    Target(
        "retrieval_text",
        lambda: [text.encode() for text in CAPTION_LINES],
        _read_captions("a.csv"),
        tokens=(b'"', b",", b"\t", b"\r", b"\n", b"video_id,sentence\n", b"../", b"\xef\xbb\xbf"),
        weight=0.5,
    ),
    Target(
        "clip_shard_record",
        _records,
        lambda data, folder: decode_clip(data),
        tokens=(b'"files": ', b'"num_frames": ', b'"frame_pattern": ', b'"path": '),
        weight=8,
    ),
    Target(
        "clip_shard_index",
        lambda: [json.dumps({"shards": [SHARD], "format": FORMAT}).encode()],
        _read_index,
        tokens=(b'"name": ', b'"../', b'"records": '),
    ),
)
