"""The command `export`."""

import shutil
from pathlib import Path

import jax.export
import numpy as np
import pytest

from internvideo_jax import launch
from internvideo_jax.convert.engine.conversion import convert
from internvideo_jax.launch import export
from internvideo_jax.launch.main import main

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


@pytest.mark.parametrize(
    "name",
    [
        "model.json",
        "params/_METADATA",
        "params/_CHECKPOINT_METADATA",
        "params/params.head.kernel/.zarray",
        "params/params.head.kernel/0.0",
    ],
)
@pytest.mark.parametrize(
    "argv",
    [
        ["export", "MODEL", "--output=OUT/a"],
        ["convert", "MODEL", "--to_pytorch", "--output=OUT/a.safetensors"],
        ["verify", "MODEL", "--json=OUT/a.json"],
        ["predict", "VIDEO", "--model=MODEL", "--json=OUT/a.json"],
        ["extract", "VIDEO", "--model=MODEL", "--output=OUT/a"],
        ["evaluate", "--annotations=LIST", "--model=MODEL", "--output=OUT/a"],
    ],
    ids=lambda argv: argv[0],
)
def test_every_command_names_the_damaged_file_of_a_model(model, tmp_path, capsys, argv, name):
    damaged, video = shutil.copytree(model, tmp_path / "model"), tmp_path / "a.mp4"
    content = bytearray((damaged / name).read_bytes())
    place = content.index(b"0.485") + 4 if name == "model.json" else len(content) // 2
    content[place] ^= 1
    (damaged / name).write_bytes(content)
    video.touch()
    (tmp_path / "list.csv").write_text("a.mp4,0\n")
    places = {
        "MODEL": damaged, "VIDEO": video, "LIST": tmp_path / "list.csv", "OUT": tmp_path / "out"
    }  # fmt: skip
    for word, path in places.items():
        argv = [argument.replace(word, str(path)) for argument in argv]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert f"{damaged / name}" in error
    assert "damaged" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


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
