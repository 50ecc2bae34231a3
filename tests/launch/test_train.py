import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.launch import arguments, train
from internvideo_jax.launch.common import run_config
from internvideo_jax.models import VideoClassifierConfig
from internvideo_jax.parallel import aot
from internvideo_jax.training.metrics import read_metrics
from internvideo_jax.training.stages.classify import ClassifyConfig, ClassifyStage
from tests.small_models import ENCODER, noise

ROOT = Path(__file__).parents[2]

CONFIG = """
from ml_collections import ConfigDict
from internvideo_jax.configs.stage1.common import as_config
from internvideo_jax.data.config import DataConfig
from internvideo_jax.models.video_classifier import VideoClassifierConfig
from internvideo_jax.models.video_vit import VideoViTConfig
from internvideo_jax.training.stages import ClassifyConfig

ENCODER = VideoViTConfig(
    width=32, depth=2, num_heads=2, mlp_dim=64, image_size=28, num_frames=2, pooler_heads=2
)


def get_config(annotations=""):
    model = VideoClassifierConfig(ENCODER, 4)
    data = DataConfig(
        annotations=annotations or None, num_classes=4, num_frames=2, image_size=28, workers=0,
        augmentation="none", cache_dir=None,
    )
    stage = as_config(ClassifyConfig(model=model))
    stage.kind = "classify"
    return ConfigDict({
        "stage": stage,
        "train": {
            "batch_size": 4, "steps": 4, "warmup_steps": 1, "optimizer": {"lr": 0.002},
            "log_every": 1, "eval_every": 4, "checkpoint": {"every_steps": 2},
            "accumulation": 1, "num_sample": 1, "mesh": {"fsdp": -1, "data": 1},
        },
        "data": as_config(data),
        "eval_data": as_config(data),
    })
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def test_dry_run_without_data(config_file, capsys):
    assert train.main([f"--config={config_file}", "--dry_run", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "mesh: data=1 x fsdp=1 x tensor=1 x context=1, 1 devices" in out
    row = next(line for line in out.splitlines() if "encoder/blocks/attn/proj/kernel" in line)
    # Layers, heads, their width, model width.
    assert "(2, 2, 16, 32)" in row
    assert "(None, 'tensor', None, 'fsdp')" in row
    numbers = {line.split()[0]: line.split() for line in out.splitlines() if "MiB" in line}
    assert float(numbers["optimizer"][1]) == pytest.approx(2 * float(numbers["parameters"][1]), 0.1)
    assert "video: " in out
    assert "schedule: 4 steps, 1 of them warm-up" in out
    [line] = [line for line in out.splitlines() if line.startswith("  step 2 ")]
    assert line.split()[2:] == ["learning", "rate", "0.002,", "per", "256", "rows", "0.128"]
    # What matters comes last, and alone unless more is asked for.
    assert out.index(row) < out.index("MiB") < out.index("schedule: ")
    assert train.main([f"--config={config_file}", "--dry_run"]) == 0
    summary = capsys.readouterr().out
    assert "kernel" not in summary
    assert out.endswith(summary)


def test_dry_run_warns_of_data_smaller_than_a_batch(config_file, tmp_path, capsys):
    options = [f"--config={config_file}:{write_clips(tmp_path)}", "--dry_run"]
    assert train.main([*options, "--config.train.batch_size=16"]) == 0
    warning = "warning: fewer clips (12) than in a batch (16): it has some more than once\n"
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--config.data.num_classes=5", "--config.data.image_size=56"],
            "config.data.image_size: expected 28 as in config.stage, found 56;"
            " config.data.num_classes: expected 4 as in config.stage, found 5; set both alike",
        ),
        (
            ["--config.eval_data.num_frames=3"],
            "config.eval_data.num_frames: expected 2 as in config.stage, found 3",
        ),
        (["--config.data.multi_label=True"], "config.data.multi_label: expected False"),
        (["--config.train.optimizer.lr=-1"], "lr: expected a number above 0 and at most 1"),
        (
            ["--config.stage.model.encoder.dtype=float17"],
            "dtype: expected one of 'float32', 'bfloat16', 'float16', found 'float17'",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(config_file, capsys, options, message):
    assert train.main([f"--config={config_file}:clips.jsonl", "--dry_run", *options]) == 2
    assert message in capsys.readouterr().err


def test_evaluation_data_without_clips_need_not_fit(config_file):
    assert (
        train.main([f"--config={config_file}", "--dry_run", "--config.eval_data.num_classes=9"])
        == 0
    )


def test_evaluation_clips_are_tried_before_training(config_file, tmp_path, capsys):
    clips = tmp_path / "clips.jsonl"
    clips.write_text('{"video": "gone.mp4", "label": 0}\n')
    workdir = tmp_path / "run"
    assert train.main([f"--config={config_file}:{clips}", f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    assert "gone.mp4: expected a video file, found No such file" in error
    assert not workdir.exists()


def test_a_schedule_in_epochs_needs_no_data(config_file):
    config = arguments.parse_config(argparse.Namespace(config=str(config_file)), [])
    config.train = {**config.train.to_dict(), "steps": None, "epochs": 10.0}
    config.train = {**config.train.to_dict(), "warmup_steps": None, "warmup_epochs": 2.5}
    out = train.dry_run(run_config.parse_run(config)).text()
    lines = out[out.index("schedule") :].splitlines()
    assert lines[0] == "schedule: 10.0 epochs; set the data to know the steps"
    assert [line.split()[1] for line in lines[1:]] == ["0.00", "2.50", "6.25", "10.00"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology=v5e:4x4"], "add --dry_run"),
        ([], "expected --workdir=DIR"),
        (["--workdir=gs://bucket/run"], "expected a folder of the file system"),
        (["--dry_run", "--config.train.batch_size=0"], "batch_size: expected at least 1, found 0"),
        (["--dry_run", "--config.train.num_sample=2"], "data.num_sample=1 and train.num_sample=2"),
        (["--dry_run", "--config.stage.kind=clasify"], "did you mean 'classify'"),
        (["--dry_run", "--topology=v5e:4x4"], "pip install libtpu"),
        (["--dry_run", "--config=configs/encoder.py:s14"], "expected a config with stage, train"),
    ],
)
def test_misuse(config_file, capsys, monkeypatch, options, message):
    monkeypatch.setattr(aot, "compiler_version", lambda: None)
    assert train.main([f"--config={config_file}", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def command(*options, **environment):
    return subprocess.run(
        [sys.executable, "-m", "internvideo_jax.launch.main", "train", *map(str, options)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there may be a GPU")
def test_a_platform_without_devices_is_an_error_of_one_line(config_file):
    result = command(f"--config={config_file}", "--dry_run", JAX_PLATFORMS="cuda")
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert "JAX_PLATFORMS=cuda, found none" in line


@pytest.mark.slow
@pytest.mark.skipif(aot.compiler_version() is None, reason="libtpu is not installed")
def test_dry_run_on_a_described_slice(config_file):
    options = ["--config.train.batch_size=16", "--config.train.mesh.fsdp=4"]
    result = command(
        f"--config={config_file}",
        "--dry_run",
        "--topology=v5e:4x4",
        "--config.train.mesh.data=-1",
        *options,
    )
    assert result.returncode == 0, result.stderr
    assert "mesh: data=4 x fsdp=4 x tensor=1 x context=1, 16 devices" in result.stdout
    assert "of the device          16,128.00 MiB" in result.stdout
    assert "on a device [1, 2, 28, 28, 3]" in result.stdout


def write_clips(folder):
    """Four classes of short clips that differ by colour, and their list."""
    import av

    lines = []
    for index in range(12):
        path = folder / f"{index}.mp4"
        colour = np.full((28, 28, 3), 60 * (index % 4) + 20, np.uint8)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=8, options={"threads": "1"})
            stream.width, stream.height, stream.pix_fmt = 28, 28, "yuv420p"
            for _ in range(4):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(colour)))
            container.mux(stream.encode())
        lines.append(json.dumps({"video": path.name, "label": index % 4}))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "clips.jsonl"


@pytest.mark.slow
def test_a_run_on_video_files_and_the_same_on_eight_devices(config_file, tmp_path):
    (tmp_path / "clips").mkdir()
    annotations = write_clips(tmp_path / "clips")
    config = f"--config={config_file}:{annotations}"
    one, eight = tmp_path / "one", tmp_path / "eight"
    options = [
        "--config.train.batch_size=8",
        "--config.train.steps=20",
        "--config.train.eval_every=10",
    ]
    # Unoptimised code compiles faster.
    flags = "--xla_backend_optimization_level=0"
    result = command(config, f"--workdir={one}", *options, XLA_FLAGS=flags)
    assert result.returncode == 0, result.stderr
    flags += " --xla_force_host_platform_device_count=8"
    result = command(config, f"--workdir={eight}", *options, XLA_FLAGS=flags)
    assert result.returncode == 0, result.stderr
    losses = [
        [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
        for folder in (one, eight)
    ]
    assert len(losses[0]) == 20
    # Two summation orders of float32.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert any("eval/top1" in line for line in read_metrics(one / "metrics.jsonl"))
    from internvideo_jax import saved_model

    assert saved_model.load(one / "model").config.num_classes == 4
    lines = annotations.read_text().splitlines()
    annotations.write_text("\n".join(lines[::-1]) + "\n")
    result = command(config, f"--workdir={one}", *options)
    assert result.returncode == 2
    assert "clips.sha256 " in result.stderr
    assert "clips.number" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.train.batch_size=0"], "1 to 96, 8 times the 12 clips of the data, found 0"),
        (["--config.stage.starts_from=b14"], "starts from b14"),
        (["--config.stage.initial=absent"], "absent is not a saved model"),
        (["--config.stage.initial={other}"], "params/encoder/pos_embed: expected shape"),
        (["--config.train.batch_size=97"], "expected 1 to 96, 8 times the 12 clips"),
        (["--config.train.optimizer.lr=781"], "lr: expected a number above 0 and at most 1"),
        (["--config.data.root=absent"], "expected clips that can be read"),
        (["--config.eval_data.root=absent"], "expected clips that can be read"),
    ],
)
def test_a_dry_run_refuses_what_training_would(config_file, clips, capsys, options, message):
    options = [option.format(other=clips.parent / "other") for option in options]
    assert train.main([f"--config={config_file}:{clips}", "--dry_run", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "options", "field"),
    [
        ("stage2/finetune.py:1b", ["train.batch_size=12"], "--config.stage.match_group"),
        ("stage2/finetune.py:1b", ["train.accumulation=2"], "train.accumulation: expected 1"),
        ("stage1/pretrain.py:1b", ["stage.teacher_batch=3"], "--config.stage.teacher_batch"),
        ("stage1/finetune.py:b14,k400", ["stage.mix_group=6"], "--config.stage.mix_group"),
    ],
)
def test_a_dry_run_refuses_batches_that_a_step_would(capsys, recipe, options, field):
    options = [f"--config.{option}" for option in options]
    assert train.main([f"--config=configs/{recipe}", "--dry_run", *options]) == 2
    assert field in capsys.readouterr().err


def test_a_dry_run_counts_the_layers_that_are_trained(capsys):
    options = ["--config=configs/stage1/probe.py:tiny,custom", "--config.stage.model.num_classes=3"]
    counts = []
    for blocks in (1, 2):
        more = f"--config.stage.probe.open_block_num={blocks}"
        assert train.main([*options, more, "--dry_run"]) == 0
        found = re.search(r"parameters: ([\d,]+), of which ([\d,]+) are", capsys.readouterr().out)
        counts.append([int(number.replace(",", "")) for number in found.groups()])
    assert counts[0][0] == counts[1][0]
    assert counts[0][1] < counts[1][1] < counts[1][0]


def test_what_cannot_fit_into_memory_is_refused_after_the_summary(config_file, capsys):
    options = [f"--config={config_file}", "--dry_run", "--config.train.batch_size=40000000"]
    assert train.main(options) == 2
    out, error = capsys.readouterr()
    assert "schedule: " in out
    assert "GiB before activations" in error


def test_training_refuses_a_batch_far_larger_than_the_data(config_file, clips, tmp_path, capsys):
    options = [f"--config={config_file}:{clips}", "--config.train.batch_size=20000"]
    assert train.main([*options, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "12 clips of the data, found 20000; set another" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_peak_rate_is_said_and_a_useless_one_warned_of(config_file, clips, capsys):
    options = [f"--config={config_file}:{clips}", "--dry_run"]
    assert train.main(options) == 0
    said = capsys.readouterr().err
    assert "peak learning rate 0.002 (per 256 rows 0.128) after 1 warm-up steps" in said
    assert "hardly changes" not in said
    assert train.main([*options, "--config.train.optimizer.lr=1.6e-7"]) == 0
    assert "a learning rate of 1.6e-07 hardly changes the weights" in capsys.readouterr().err


def test_the_config_is_printed(config_file, capsys):
    options = [f"--config={config_file}", "--print_config", "--config.train.steps=7"]
    assert train.main(options) == 0
    assert "--config.train.steps=7  # recipe: 4\n" in capsys.readouterr().out


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A list of clips; beside it, a saved model of another size."""
    folder = tmp_path_factory.mktemp("clips")
    encoder = dataclasses.replace(ENCODER, width=64)
    stage = ClassifyStage(ClassifyConfig(VideoClassifierConfig(encoder, 4)))
    stage.save(noise(stage.init, 0), folder / "other")
    return write_clips(folder)


CUSTOM = "--config=configs/stage1/finetune.py:tiny,custom"


@pytest.mark.parametrize("batch_size", [0, 100000])
def test_a_batch_is_checked_before_the_rate_that_follows_it(clips, capsys, batch_size):
    options = [CUSTOM, "--dry_run", f"--config.data.annotations={clips}"]
    assert train.main([*options, f"--config.train.batch_size={batch_size}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "expected 1 to 96" in error
    assert f"12 clips of the data, found {batch_size}" in error


def test_clips_that_an_epoch_leaves_to_the_next_are_said(clips, capsys):
    options = [CUSTOM, "--dry_run", f"--config.data.annotations={clips}"]
    assert train.main([*options, "--config.train.batch_size=5"]) == 0
    said = capsys.readouterr().err
    assert "an epoch is 2 steps of 5 clips: 10 of the 12, the other 2 begin the next one\n" in said
    assert train.main([*options, "--config.train.batch_size=6"]) == 0
    assert "an epoch" not in capsys.readouterr().err


CAPTIONED = """
from internvideo_jax.configs.stage1.common import run_config
from internvideo_jax.configs.stage2 import common
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stages.cross_modal_config import CrossModalConfig
from tests.small_models import clip_stage2


def get_config():
    stage = CrossModalConfig(
        clip_stage2("visual"), max_text_length=16, match_group=2, starts_from="a released model"
    )
    train = TrainConfig(batch_size=4, steps=2, optimizer=common.adamw(1e-4))
    return run_config("cross_modal", stage, train, common.data(stage), None)
"""


def test_what_follows_from_a_missing_vocabulary_is_not_said_beside_it(clips, tmp_path, capsys):
    path = tmp_path / "captioned.py"
    path.write_text(CAPTIONED)
    options = [f"--config.data.annotations={clips}", "--config.data.validation_share=0.25"]
    assert train.main([f"--config={path}", "--dry_run", *options]) == 2
    error = capsys.readouterr().err
    problems = error[error.index("internvideo-jax train: ") :].splitlines()
    assert len(problems) == 2
    assert "starts from a released model" in problems[0]
    assert "set --config.data.vocabulary" in problems[1]


@pytest.fixture
def damaged(clips, tmp_path):
    """The clips, one of which is broken and one of which is not there."""
    shutil.copytree(clips.parent, tmp_path / "damaged")
    (tmp_path / "damaged" / "3.mp4").write_text("no video")
    (tmp_path / "damaged" / "8.mp4").unlink()
    return tmp_path / "damaged" / clips.name


def test_a_dry_run_names_clips_that_cannot_be_read(config_file, damaged, capsys):
    assert train.main([f"--config={config_file}:{damaged}", "--dry_run"]) == 0
    said = capsys.readouterr().err
    for purpose in ("train", "evaluate"):
        assert f"read 12 of the 12 clips to {purpose} on: 2 cannot be read\n" in said
    assert said.count(f"warning: cannot be read: {damaged.parent / '8.mp4'}: ") == 2
    assert said.count("3.mp4: expected a video file") == 2


@pytest.mark.slow
def test_a_run_says_what_became_of_its_clips_and_where_the_model_lies(
    config_file, damaged, tmp_path, capsys
):
    workdir = tmp_path / "a run"
    options = ["--config.train.eval_every=2", "--config.train.checkpoint.every_steps=200"]
    assert train.main([f"--config={config_file}:{damaged}", f"--workdir={workdir}", *options]) == 0
    out, said = capsys.readouterr()
    # Evaluated twice, named once.
    assert said.count("clips 10, failed 2") == 2
    assert said.count(f"warning: left out of the evaluation: {damaged.parent / '3.mp4'}: ") == 1
    assert said.count(f"warning: left out of the evaluation: {damaged.parent / '8.mp4'}: ") == 1
    # As many checkpoints as a run deserves that is shorter than from one to the next.
    assert "a checkpoint every 1 steps" in said
    steps = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert steps == {"2", "3", "4"}

    from internvideo_jax import __version__, saved_model

    training = saved_model.read_description(workdir / "model")["training"]
    assert training["config"] == f"{config_file}:{damaged}"
    assert (training["kind"], training["steps"], training["initial"]) == ("classify", 4, None)
    assert training["data"]["names"] == [str(damaged)]
    assert training["data"]["number"] == 12
    assert len(training["data"]["sha256"]) == 64
    assert training["internvideo_jax"] == __version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", training["date"])
    last = read_metrics(workdir / "metrics.jsonl")
    assert training["metrics"]["loss"] == last[-2]["loss"]
    assert training["metrics"]["eval/top1"] == last[-1]["eval/top1"]
    assert not {"step", "learning_rate", "seconds_per_step"} & training["metrics"].keys()

    lines = out.splitlines()
    assert lines[0] == f"trained -> {workdir}/model"
    assert f", top1 {last[-1]['eval/top1']:.4g}" in lines[1]
    assert f"  internvideo-jax predict FILE_OR_FOLDER --model='{workdir}/model'" in lines
    assert any(line.startswith("  internvideo-jax evaluate --model=") for line in lines)
