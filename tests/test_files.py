import json
import os

import pytest

from internvideo_jax import files


def nested(depth):
    return "[" * depth + "]" * depth


def test_json_of_any_origin_is_read_within_limits(tmp_path):
    path = tmp_path / "value.json"
    path.write_text(json.dumps({"a": [1, 2.5, None], "deep": json.loads(nested(60))}))
    assert files.read_json(path)["a"] == [1, 2.5, None]
    with pytest.raises(ValueError, match=r"value\.json: expected at most 10 bytes"):
        files.read_json(path, max_bytes=10)


@pytest.mark.parametrize("text", ["{", "NaN", "[Infinity]", "\xff", "9" * 10_000])
def test_what_is_no_json(text):
    with pytest.raises(ValueError, match=r"here: not valid JSON"):
        files.parse_json(text.encode("latin-1"), "here")


@pytest.mark.parametrize("depth", [66, 1000, 200_000])
@pytest.mark.parametrize("wrap", ['{{"a": {}}}', "[0, {}]"])
def test_json_that_nests_too_deep(depth, wrap):
    with pytest.raises(ValueError, match="here: expected JSON of at most 64 levels"):
        files.parse_json(wrap.format(nested(depth)), "here")


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name, kind in {"pipe": "pipe", "endless": "device", ".": "folder"}.items():
        with pytest.raises(ValueError, match=f"expected a regular file, found a {kind}"):
            files.read_json(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "absent")
