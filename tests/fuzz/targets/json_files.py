"""JSON of any origin, and lists of class names."""

import json
from pathlib import Path

from internvideo_jax.class_names import read_class_names
from internvideo_jax.files import read_json
from tests.fuzz.harness import Target

NAMES = ["riding a bike", "猫", "put [something] on a table", "7"]


def _seeds() -> list[bytes]:
    forms = (
        NAMES,
        {name: i for i, name in enumerate(NAMES)},
        {str(i): name for i, name in enumerate(NAMES)},
        {"model_type": "vit", "id2label": dict(enumerate(NAMES))},
    )
    return [json.dumps(form).encode() for form in forms]


def _file(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


TARGETS = (
    Target("json", _seeds, lambda data, folder: read_json(_file(data, folder, "a.json"))),
    Target(
        "class_names_json",
        _seeds,
        lambda data, folder: read_class_names(_file(data, folder, "a.json")),
        tokens=(b'"id2label":', b'"label2id":', b'"0":'),
        weight=4,
    ),
    Target(
        "class_names_text",
        lambda: ["\n".join(NAMES).encode(), b"\xef\xbb\xbfa\r\nb\r\n"],
        lambda data, folder: read_class_names(_file(data, folder, "a.txt")),
    ),
)
