"""The demo's training runs: recipe, first weights, the loop, and what it leaves."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from internvideo_jax.configs.demo import common, image_teacher, pretrain, stage2, video_teacher
from internvideo_jax.data.annotations.lists import read_annotations
from internvideo_jax.data.synthetic.world import World
from internvideo_jax.data.wordpiece import train_vocabulary
from internvideo_jax.files import atomic_directory
from internvideo_jax.launch import arguments
from internvideo_jax.launch import train as command
from internvideo_jax.launch.common.run_config import Run as Recipe
from internvideo_jax.launch.common.run_config import parse_run
from internvideo_jax.launch.demonstration.meter import Part
from internvideo_jax.launch.demonstration.report import UNTRAINED, Run
from internvideo_jax.training.outputs import MODEL
from internvideo_jax.training.stages.model import fan_in

CONFIGS = {
    "image teacher": image_teacher.get_config,
    "video teacher": video_teacher.get_config,
    "stage 1": pretrain.get_config,
    # The same, after teachers that have learnt nothing.
    "control": pretrain.get_config,
    "stage 2": stage2.get_config,
}
# In the folder of the runs, once all is done: the next demo starts anew.
_FINISHED = "finished"


def recipe(
    name: str,
    size: str,
    data: Mapping[str, str] | None = None,
    stage: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
) -> Recipe:
    """A run's parts.

    Args:
      name: key of `CONFIGS`.
      size: key of `configs.demo.common.SIZES`.
      data: fields of the `DataConfig` that only this machine knows.
      stage: likewise of the stage's config, such as the models to start from.
      train: fields of the `TrainConfig` to change.
    """
    config = CONFIGS[name](size)
    config.train.update(train or {})
    config.stage.update(stage or {})
    config.data.update(data or {})
    return parse_run(config)


def find_folder(size: str, folder: Path) -> Path:
    """The folder of the runs of a size, which need not be there.

    Its name depends on the runs' configs, so that a demo of another version does not go on in it.
    """
    configs = [dataclasses.asdict(common.SIZES[size])]
    configs += [recipe(name, size).as_json for name in CONFIGS]
    digest = hashlib.sha256(json.dumps(configs).encode()).hexdigest()[:8]
    return folder / f"{size}-{digest}"


def open_folder(size: str, folder: Path) -> Path:
    """The folder of the runs of a size: a new one, or one that was left before its end."""
    directory = find_folder(size, folder)
    if (directory / _FINISHED).exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def close_folder(directory: Path) -> None:
    """Marks the runs in a folder as done."""
    (directory / _FINISHED).touch()


def train(
    name: str,
    size: str,
    folder: Path,
    part: Part,
    data: Mapping[str, str],
    stage: Mapping[str, Any] | None = None,
) -> Run:
    """Trains, or goes on from the newest checkpoint.

    Args:
      name: key of `CONFIGS`.
      size: key of `configs.demo.common.SIZES`.
      folder: of `open_folder`.
      part: where the FLOPs of the whole run are noted.
      data: as in `recipe`.
      stage: likewise; None starts from random weights, which are kept beside the model.

    Raises:
      arguments.Terminated: SIGTERM, after a checkpoint.
      OSError, ValueError: as `training.loop.train`.
    """
    directory = folder / name.replace(" ", "_")
    untrained = directory / UNTRAINED
    run = recipe(name, size, data, {"initial": str(untrained)} if stage is None else stage)
    assert run.train.steps is not None
    if stage is None:
        save_untrained(untrained, run.stage, run.train.seed)
    ((of_media, rows),) = run.kinds().values()
    part.flops = sum(of_media.flops().values()) * float(rows * run.train.steps)
    if not command.train(run, directory):
        raise arguments.Terminated
    return Run(name, directory / MODEL, run.train.steps)


def stage2_fields(
    folder: Path, world: World, student: Path
) -> tuple[dict[str, str], dict[str, Any]]:
    """What `recipe` and `train` take for stage 2, whose vocabulary is of the training captions.

    Args:
      folder: of `open_folder`; gets the vocabulary.
      world: has the captions.
      student: saved model of stage 1 that the video tower starts from.

    Returns:
      Fields of the `DataConfig` and of the stage's config.
    """
    vocabulary = folder / "stage_2" / "vocab.txt"
    records = read_annotations(world.annotations("train"))
    captions = (caption for record in records for caption in record.captions)
    num_words = train_vocabulary(captions, vocabulary)
    stage = {"initial_vision": str(student), "model": {"text": {"vocab_size": num_words}}}
    return {"vocabulary": str(vocabulary)}, stage


def save_untrained(directory: Path, stage: Any, seed: int) -> None:
    """Writes a stage's model with random weights, unless it is there.

    Args:
      directory: of the saved model.
      stage: whose model; its module has an encoder.
      seed: of the weights.
    """
    if directory.exists():
        return
    variables = nn.unbox(jax.jit(stage.init)(jax.random.key(seed)))
    with atomic_directory(directory) as partial:
        stage.save(fan_in(variables, stage.module), partial)
