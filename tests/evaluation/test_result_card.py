"""What a result was measured with."""

import hashlib
import importlib.metadata
import subprocess
from types import SimpleNamespace

import jax

from internvideo_jax.evaluation import result_card
from internvideo_jax.evaluation.result_card import (
    code_commit,
    combined_sha256,
    directory_files,
    environment,
)


def test_the_environment_is_named():
    card = environment("float32")
    assert card["dtype"] == "float32"
    assert card["device"].startswith(f"{jax.device_count()} x ")
    assert card["versions"]["jax"] == jax.__version__
    assert {"internvideo_jax", "python", "numpy", "av", "cv2", "PIL"} <= card["versions"].keys()


def test_the_commit_of_a_checkout_is_named(tmp_path, monkeypatch):
    code = tmp_path / "internvideo_jax" / "evaluation" / "result_card.py"
    code.parent.mkdir(parents=True)
    code.write_text("1")
    monkeypatch.setattr(result_card, "__file__", str(code))

    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def found():
        code_commit.cache_clear()
        return code_commit()

    git("init")
    assert found() is None
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", "v1")
    assert found() == git("rev-parse", "HEAD")
    code.write_text("2")
    assert found() == f"{git('rev-parse', 'HEAD')}-dirty"
    code_commit.cache_clear()


def test_the_commit_of_an_installed_package_is_that_of_its_origin(tmp_path, monkeypatch):
    monkeypatch.setattr(result_card, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    for text, expected in (
        ('{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}', "abc"),
        ('{"url": "file:///x", "dir_info": {}}', None),
        (None, None),
    ):
        code_commit.cache_clear()
        distribution = SimpleNamespace(read_text=lambda name, text=text: text)
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name, d=distribution: d)
        assert code_commit() == expected
    code_commit.cache_clear()


def test_the_sum_of_a_folder_is_that_of_names_and_contents(tmp_path):
    def folder(name: str, files: dict[str, str]) -> str:
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        found = directory_files(tmp_path / name)
        sums = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
        return combined_sha256(sums, tmp_path / name)

    files = {"model.json": "{}", "params/a": "1", "params/b": "2"}
    first = folder("one", files)
    assert folder("moved", files) == first
    assert folder("swapped", {**files, "params/a": "2", "params/b": "1"}) != first
    assert folder("renamed", {"model.json": "{}", "params/a": "1", "params/c": "2"}) != first
