"""The command `reference`, and what `verify` makes of its file."""

import sys
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax import launch
from internvideo_jax.convert.engine.conversion import convert
from internvideo_jax.convert.engine.verify import load_reference
from internvideo_jax.data.synthetic.scenes import write_video
from internvideo_jax.launch import reference, verify
from tests.small_torch import make_torch

ASSETS = Path(launch.__file__).parent / "assets"

# A module that computes what the converted model does.
CODE = """
import jax
import numpy as np
import torch

from internvideo_jax.saved_model import load


class Original(torch.nn.Module):
    def __init__(self, model, factor=1.0):
        super().__init__()
        self.model, self.factor = load(model), factor

    def forward(self, video):
        clips = np.moveaxis(video.numpy(), 1, -1)
        with jax.default_matmul_precision("highest"):
            output = jax.jit(self.model.module.apply)(self.model.variables, clips)
        return torch.from_numpy(np.asarray(output.logits) * np.float32(self.factor))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    output = tmp_path_factory.mktemp("referenced") / "model"
    convert([ASSETS / "demo_checkpoint.pth"], output)
    return output


@pytest.fixture
def argv(model, tmp_path, monkeypatch):
    """Arguments for a module of `CODE`: `argv(factor, ...)`."""
    monkeypatch.setitem(sys.modules, "torch", make_torch())
    monkeypatch.delitem(sys.modules, "original", raising=False)
    (tmp_path / "original.py").write_text(CODE)

    def make(factor="1.0", *more):
        return [
            str(model),
            f"--module={tmp_path / 'original.py'}:Original",
            f'--kwargs={{"model": "{model}", "factor": {factor}}}',
            f"--output={tmp_path / 'reference.safetensors'}",
            *more,
        ]

    return make


@pytest.mark.slow
def test_a_reference_of_the_original_verifies_the_model(argv, model, tmp_path, capsys):
    assert reference.main(argv()) == 0
    assert "in/video [2, 3, 4, 56, 56]; out/logits [2, 7]" in capsys.readouterr().out
    path = tmp_path / "reference.safetensors"
    assert verify.main([str(model), f"--reference={path}"]) == 0
    assert "1 outputs, all agree" in capsys.readouterr().out
    assert reference.main(argv()) == 2
    assert "exists; name another output" in capsys.readouterr().err
    path.unlink()
    assert reference.main(argv("1.001")) == 0
    assert verify.main([str(model), f"--reference={path}"]) == 1


def test_a_clip_of_a_file_can_be_run(argv, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", frames)
    assert reference.main(argv("1.0", f"--video={tmp_path / 'clip.mp4'}", "--outputs=scores")) == 0
    found = load_reference(tmp_path / "reference.safetensors")
    assert list(found.outputs) == ["scores"]
    assert found.inputs["video"].shape == (1, 3, 4, 56, 56)
    # Normalised pixels.
    assert np.abs(found.inputs["video"]).max() < 3


def test_what_gives_no_reference_leaves_nothing(argv, tmp_path, capsys, monkeypatch):
    assert reference.main(argv("NaN")) == 2
    assert "found logits with NaN or infinities" in capsys.readouterr().err
    assert reference.main(argv("1.0", "--video=nothing.mp4")) == 2
    assert "nothing.mp4" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: None)
    assert reference.main(argv()) == 2
    assert "internvideo-jax[torch]" in capsys.readouterr().err
    assert not (tmp_path / "reference.safetensors").exists()
    with pytest.raises(SystemExit, match="^2$"):
        reference.main([*argv(), "--kwargs=[1]"])
    assert "expected a JSON object" in capsys.readouterr().err
