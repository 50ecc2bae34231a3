"""What a result was measured with."""

import hashlib

import jax

from internvideo_jax.evaluation.result_card import combined_sha256, directory_files, environment


def test_the_environment_is_named():
    card = environment("float32")
    assert card["dtype"] == "float32"
    assert card["device"].startswith(f"{jax.device_count()} x ")
    assert card["versions"]["jax"] == jax.__version__
    assert {"internvideo_jax", "python", "numpy", "av", "cv2", "PIL"} <= card["versions"].keys()


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
