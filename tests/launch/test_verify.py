"""The command `verify`."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from internvideo_jax import launch
from internvideo_jax.convert.engine.verify import Reference, compare, format_table
from internvideo_jax.launch import convert, verify
from internvideo_jax.saved_model import load, save

ASSETS = Path(launch.__file__).parent / "assets"
REFERENCE = ASSETS / "demo_reference.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    output = tmp_path_factory.mktemp("verified") / "model"
    assert convert.main([str(ASSETS / "demo_checkpoint.pth"), f"--output={output}"]) == 0
    return output


def test_a_faithful_model_passes(model, capsys, tmp_path):
    table = tmp_path / "table.json"
    assert verify.main([str(model), f"--reference={REFERENCE}", f"--json={table}"]) == 0
    text = capsys.readouterr().out
    assert "8 outputs, all agree" in text
    content = json.loads(table.read_text())
    assert {row["name"] for row in content["outputs"]} >= {"logits", "hidden/blocks.2"}
    assert all(row["ok"] and row["max_error"] <= row["allowed"] for row in content["outputs"])
    assert content["not_checked"] == []


def test_a_reference_that_differs_fails(model, capsys, tmp_path):
    tensors = safetensors.numpy.load_file(REFERENCE)
    tensors["out/logits"] = tensors["out/logits"] * np.float32(1.0001)
    tensors["out/hidden/fc_norm"] = tensors["out/hidden/fc_norm"][:1]
    tensors["out/attention"] = np.zeros(3, np.float32)
    reference, table = tmp_path / "reference.safetensors", tmp_path / "table.json"
    safetensors.numpy.save_file(tensors, reference)
    assert verify.main([str(model), f"--reference={reference}", f"--json={table}"]) == 1
    text = capsys.readouterr().out
    assert "8 outputs, 2 FAILED" in text
    assert "not checked: attention" in text
    failed = [row for row in json.loads(table.read_text())["outputs"] if not row["ok"]]
    assert {row["name"]: row["max_error"] is None for row in failed} == {
        "logits": False,
        "hidden/fc_norm": True,
    }


def test_values_that_are_not_finite_are_called_so():
    broken = np.array([1, np.nan, np.inf], np.float32)
    whole = np.ones(3, np.float32)
    reference = Reference({}, {"ours": whole, "theirs": broken, "shape": whole[:2]})
    rows = compare({"ours": broken, "theirs": whole, "shape": whole}, reference)
    assert not any(row.ok for row in rows)
    table = format_table(rows, ())
    assert "2 of the model's 3 values are not finite" in table
    assert "2 of the reference's 3 values are not finite" in table
    assert "expected shape (2,), found (3,)" in table


def test_without_a_reference_the_checksums_are_compared(model, capsys, tmp_path):
    table = tmp_path / "checked.json"
    assert verify.main([str(model), f"--json={table}"]) == 0
    content = json.loads(table.read_text())
    assert (
        f"{content['arrays']} arrays ({content['array_bytes']:,} bytes)" in capsys.readouterr().out
    )
    assert content["arrays"] > 30
    assert content["files"] > content["arrays"]
    assert content["model"] == str(model)


def test_a_model_of_an_older_version_is_told_to_have_no_checksums(model, capsys, tmp_path):
    old = shutil.copytree(model, tmp_path / "old")
    description = json.loads((old / "model.json").read_text())
    for entry, code in (("files", 0), ("checksums", 1)):
        del description[entry]
        description.pop("sha256", None)
        (old / "model.json").write_text(json.dumps(description))
        assert verify.main([str(old)]) == code
        assert "without checksums: model.json" in capsys.readouterr().out


def test_a_damaged_model_is_not_verified(model, capsys, tmp_path):
    damaged = shutil.copytree(model, tmp_path / "damaged")
    (chunk,) = (damaged / "params" / "params.encoder.blocks.mlp.fc1.kernel").glob("[0-9]*")
    content = bytearray(chunk.read_bytes())
    content[500] ^= 1
    chunk.write_bytes(content)
    for options in ([], [f"--reference={REFERENCE}"]):
        assert verify.main([str(damaged), *options]) == 2
        assert f"{chunk}: damaged" in capsys.readouterr().err


def test_a_model_whose_weights_are_nan_fails(model, capsys, tmp_path):
    loaded = load(model)
    variables = jax.tree.map(np.asarray, loaded.variables)
    variables["params"]["head"]["bias"] = np.full(7, np.nan, np.float32)
    path = tmp_path / "nan"
    save(path, "video_classifier", loaded.config, loaded.preprocessing, variables)
    table = tmp_path / "table.json"
    assert verify.main([str(path), f"--reference={REFERENCE}", f"--json={table}"]) == 1
    assert "of the model's" in capsys.readouterr().out
    problems = {row["name"]: row["problem"] for row in json.loads(table.read_text())["outputs"]}
    assert "values are not finite" in problems["logits"]
    assert not problems["hidden/fc_norm"]


def test_files_that_are_not_what_they_should_be(model, capsys, tmp_path):
    assert verify.main([str(tmp_path), f"--reference={REFERENCE}"]) == 2
    assert "not a saved model" in capsys.readouterr().err
    assert verify.main([str(model), f"--reference={ASSETS / 'demo_checkpoint.pth'}"]) == 2
    assert "not a readable safetensors file" in capsys.readouterr().err
    tensors = {"in/video": np.zeros((1, 3, 4, 56, 56), np.float32), "out/odd": np.zeros(2)}
    safetensors.numpy.save_file(tensors, tmp_path / "odd.safetensors")
    assert verify.main([str(model), f"--reference={tmp_path / 'odd.safetensors'}"]) == 2
    assert "no output that can be checked; it has odd" in capsys.readouterr().err
    assert verify.main([str(model), f"--reference={tmp_path / 'nope'}"]) == 2
    assert "nope, found: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_is_a_size(model, capsys, tolerance):
    with pytest.raises(SystemExit, match="^2$"):
        verify.main([str(model), f"--reference={REFERENCE}", f"--tolerance={tolerance}"])
    assert f"at least 0, found {tolerance}" in capsys.readouterr().err
