"""A CLIP model trained by the command, from captions to a model that is measured."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.launch import evaluate, train
from internvideo_jax.training.metrics import read_metrics
from tests.small_models import save_clip

# The saved model with adapters, which it lacks.
CONFIG = """
import dataclasses

from internvideo_jax import saved_model
from internvideo_jax.configs.clip import common
from internvideo_jax.configs.stage1.common import run_config
from internvideo_jax.configs.stage2.common import adamw
from internvideo_jax.nn.lora import LoRAConfig
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stages.contrastive_config import ContrastiveConfig


def get_config(path):
    model = saved_model.load(path).config
    lm = dataclasses.replace(model.text.lm, lora=LoRAConfig(2, 4.0, 0.1))
    text = dataclasses.replace(model.text, lm=lm, max_length=16)
    stage = ContrastiveConfig(
        dataclasses.replace(model, text=text), open_blocks=0, text="adapters", initial=path
    )
    train = TrainConfig(
        batch_size=4, steps=3, optimizer=adamw(1e-2), frozen_dtype="bfloat16", log_every=1
    )
    return run_config("contrastive", stage, train, common.data(stage), None)
"""
LOOKS = [
    (shape, color) for shape in ("ring", "circle", "cross", "square") for color in ("red", "blue")
]


@pytest.fixture
def clips(tmp_path):
    lines = []
    for shape, color in LOOKS:
        path = tmp_path / f"{color}_{shape}.mp4"
        scenes.write_video(path, scenes.render(scenes.Scene(shape, color, "left"), 9, 48))
        lines.append(json.dumps({"video": path.name, "caption": f"A {color} {shape}."}))
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    return tmp_path / "clips.jsonl"


def flat(model):
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.variables["params"])
    return traverse_util.flatten_dict(params, sep="/")


def test_adapters_are_trained_saved_and_measured(tmp_path, clips, capsys):
    initial = save_clip(tmp_path)
    (tmp_path / "lora.py").write_text(CONFIG)
    options = [f"--config={tmp_path / 'lora.py'}:{initial}", f"--config.data.annotations={clips}"]
    options += ["--config.data.validation_share=0.25", f"--workdir={tmp_path / 'run'}"]
    assert train.main(options) == 0
    assert "configs/eval/retrieval.py:custom" in capsys.readouterr().out
    lines = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert {"video/vtc", "temperature"} <= lines[0].keys()
    assert any("eval/similarity/t2v_r1" in line for line in lines)

    before = flat(saved_model.load(initial))
    trained = saved_model.load(tmp_path / "run" / "model")
    after = flat(trained)
    assert trained.config.text.lm.lora.rank == 2
    assert trained.tokenizer_files["tokenizer.model"].is_file()
    changed = {
        name
        for name, x in before.items()
        # What is frozen was in bfloat16.
        if not np.allclose(x, after[name], rtol=2**-8, atol=0)
    }
    expected = {n for n in before if n.startswith("vision/pooler/")} | {"text/projection"}
    assert changed - {"temperature"} <= expected
    assert {"text/projection", "vision/pooler/proj/kernel"} <= changed
    assert all(np.abs(x).max() > 0 for name, x in after.items() if name.endswith("/lora_b"))

    measured = tmp_path / "result"
    model = f"--model={tmp_path / 'run' / 'model'}"
    data = f"--config.eval_data.annotations={clips}"
    recipe = "--config=configs/eval/retrieval.py:custom"
    assert evaluate.main([model, recipe, data, f"--output={measured}"]) == 0
    card = json.loads((measured / "result.json").read_text())
    assert (card["clips"], card["texts"]) == (8, 8)
