import dataclasses
import json

import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.launch.main import main
from internvideo_jax.models import TeacherConfig, VideoMAETeacherConfig, abstract_variables, build
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.metrics import read_metrics
from internvideo_jax.training.stages.int8_teachers import FILE
from tests.small_models import CLIP_ENCODER, VIDEOMAE, noise_like

CONFIG = """
from internvideo_jax import models
from internvideo_jax.configs.stage1.common import run_config
from internvideo_jax.data.config import DataConfig
from internvideo_jax.training.config import OptimizerConfig, TrainConfig
from internvideo_jax.training.stages.pretrain import PretrainConfig
from tests.launch.test_calibrate import IMAGE, MAE, STUDENT


def get_config(annotations):
    stage = PretrainConfig(
        models.Stage1StudentConfig(STUDENT, (1,), (1,), 32, 16, 32), IMAGE, MAE
    )
    train = TrainConfig(4, OptimizerConfig(1e-3), steps=2, log_every=1)
    data = DataConfig(annotations=annotations or None, num_frames=4, image_size=32)
    return run_config("pretrain", stage, train, data, None)
"""
STUDENT = dataclasses.replace(CLIP_ENCODER, tubelet_size=1, num_frames=2)
IMAGE = TeacherConfig(dataclasses.replace(STUDENT, num_frames=1), (1,), per_frame=True)
MAE = VideoMAETeacherConfig(dataclasses.replace(VIDEOMAE, patch_size=8, image_size=32), (1,))


@pytest.fixture
def options(tmp_path):
    """A run's options: its config, saved teachers, a list of eight clips."""
    lines = []
    for number in range(8):
        colour = ("red", "green", "blue")[number % 3]
        frames = scenes.render(scenes.Scene("ring", colour, "left"), 6, size=32)
        scenes.write_video(tmp_path / f"{number}.mp4", frames)
        lines.append(json.dumps({"video": f"{number}.mp4"}))
    (tmp_path / "clips.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "tiny.py").write_text(CONFIG)
    for seed, (name, config) in enumerate((("clip", IMAGE), ("mae", MAE))):
        module = build(config)
        variables = noise_like(abstract_variables(module), seed, 0.3)
        architecture = {"clip": "teacher", "mae": "videomae_teacher"}[name]
        preprocessing = Preprocessing(VideoPreprocessing(image_size=32))
        saved_model.save(tmp_path / name, architecture, config, preprocessing, variables)
    return [
        f"--config={tmp_path / 'tiny.py'}:{tmp_path / 'clips.jsonl'}",
        *(f"--config.stage.{name}_teacher_path={tmp_path / name}" for name in ("clip", "mae")),
    ]


@pytest.mark.slow
def test_a_teacher_is_measured_and_then_trains_a_student_in_int8(options, tmp_path, capsys):
    quantized = [*options, "--config.stage.clip_teacher.quantization=int8"]
    train = ["train", *quantized, f"--workdir={tmp_path / 'run'}"]
    assert main([*train, "--dry_run"]) == 2
    assert f"expected {FILE} in {tmp_path / 'clip'}" in capsys.readouterr().err

    report = tmp_path / "report.json"
    assert main(["calibrate", *options, "--clips=4", f"--json={report}"]) == 0
    printed = capsys.readouterr().out
    assert "block  attn/qkv attn/proj   mlp/fc1   mlp/fc2       all" in printed
    assert f"{tmp_path / 'clip' / FILE}: " in printed
    assert "measured on 4 clips; targets change by " in printed
    written = json.loads(report.read_text())
    assert [row["int8"] for row in written["alone"]] == [
        ["attn/qkv"], ["attn/proj"], ["mlp/fc1"], ["mlp/fc2"]
    ]  # fmt: skip
    assert written["tried"][-1]["targets"] <= 1e-3
    assert len(written["tried"][0]["blocks"]) == 2

    assert main(train) == 0
    assert "products of int8 values are slow on a CPU" in capsys.readouterr().err
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_a_run_without_such_a_teacher_or_without_clips_is_refused(options, capsys):
    assert main(["calibrate", "--config=configs/stage1/finetune.py:b14,k400"]) == 2
    assert "expected a run with a frozen video-ViT teacher" in capsys.readouterr().err
    without_clips = f"{options[0].rpartition(':')[0]}:"
    assert main(["calibrate", without_clips, *options[1:]]) == 2
    assert "expected clips to measure the teacher on, found none" in capsys.readouterr().err
