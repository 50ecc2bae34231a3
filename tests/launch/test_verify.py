"""The command `verify`."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from internvideo_jax import launch
from internvideo_jax.launch import convert, verify

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


def test_a_table_needs_a_folder(model, capsys, tmp_path):
    argv = [str(model), f"--reference={REFERENCE}", f"--json={tmp_path / 'new' / 'table.json'}"]
    assert verify.main(argv) == 2
    assert "found no" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_is_a_size(model, capsys, tolerance):
    with pytest.raises(SystemExit, match="^2$"):
        verify.main([str(model), f"--reference={REFERENCE}", f"--tolerance={tolerance}"])
    assert f"at least 0, found {tolerance}" in capsys.readouterr().err
