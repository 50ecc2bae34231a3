"""The command `verify --known_answer`, with a clip and an answer of a small model's own."""

import dataclasses
import hashlib
import json

import pytest

from internvideo_jax.data.synthetic import scenes
from internvideo_jax.evaluation import known_answer
from internvideo_jax.launch import verify
from internvideo_jax.models.stage2 import Stage2Config
from internvideo_jax.models.viclip import ViClipConfig
from tests.small_models import save_stage2, save_viclip


@pytest.fixture(scope="module", params=[Stage2Config, ViClipConfig])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory, kind):
    save = save_stage2 if kind is Stage2Config else save_viclip
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "ring.mp4"
    scenes.write_video(path, scenes.render(scenes.Scene("ring", "blue", "left"), 10, 64))
    return path


def test_another_clip_is_refused(model, clip, capsys):
    assert verify.main([str(model), f"--known_answer={clip}"]) == 2
    assert "example1.mp4" in capsys.readouterr().err


def test_probabilities_are_compared_one_by_one(model, kind, clip, capsys, tmp_path, monkeypatch):
    digest = hashlib.sha256(clip.read_bytes()).hexdigest()
    monkeypatch.setattr(known_answer, "CLIP_SHA256", digest)
    used = []
    build = known_answer.build
    monkeypatch.setattr(known_answer, "build", lambda config: used.append(config) or build(config))
    table = tmp_path / "table.json"
    command = [str(model), f"--known_answer={clip}", f"--json={table}"]
    assert verify.main(command) == 1
    found = [row["found"] for row in json.loads(table.read_text())["texts"]]
    assert sum(found) == pytest.approx(1, abs=1e-5)
    assert "FAILED" in capsys.readouterr().out
    if kind is Stage2Config:
        # The demo's, not the one that models are trained with.
        assert used[0].vision.encoder.activation == "gelu_erf"

    demo = dataclasses.replace(known_answer.DEMOS[kind], probabilities=tuple(found))
    monkeypatch.setitem(known_answer.DEMOS, kind, demo)
    table.unlink()
    assert verify.main(command) == 0
    assert "all agree" in capsys.readouterr().out
