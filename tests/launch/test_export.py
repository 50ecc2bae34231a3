"""The command `export`."""

from pathlib import Path

import jax.export
import numpy as np
import pytest

from internvideo_jax import launch
from internvideo_jax.convert.engine.conversion import convert
from internvideo_jax.launch import export

ASSETS = Path(launch.__file__).parent / "assets"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "model"
    convert([ASSETS / "demo_checkpoint.pth"], output)
    return output


def test_a_classifier_becomes_a_program(model, tmp_path, capsys):
    path = tmp_path / "new" / "demo.stablehlo"
    argv = [str(model), f"--output={path}", "--platforms=cpu", "--batch=1"]
    assert export.main(argv) == 0
    text = capsys.readouterr().out
    assert "video uint8 [1, 4, 56, 56, 3] -> logits float32 [1, 7], for cpu" in text
    assert "equal to the model within" in text
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.call({}, np.zeros((1, 4, 56, 56, 3), np.uint8)).shape == (1, 7)
    assert export.main(argv) == 2
    assert "exists; name another output" in capsys.readouterr().err


def test_what_cannot_be_exported_leaves_nothing(model, tmp_path, capsys):
    output = f"--output={tmp_path / 'out'}"
    assert export.main([str(model), output, "--platforms=cpu,xpu"]) == 2
    assert "expected platforms of" in capsys.readouterr().err
    assert export.main([str(tmp_path), output]) == 2
    assert "not a saved model" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="^2$"):
        export.main([str(model), output, "--batch=0"])
    assert "at least 1, found '0' or symbolic" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
