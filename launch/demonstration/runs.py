"""The demo's training runs: recipe, first weights, the loop, and what it leaves."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.configs.demo import common, image_teacher, pretrain, video_teacher
from internvideo_jax.launch import arguments
from internvideo_jax.launch.demonstration.batches import Batches
from internvideo_jax.launch.demonstration.meter import Part
from internvideo_jax.launch.demonstration.weights import save_untrained
from internvideo_jax.launch.train import Run as Recipe
from internvideo_jax.launch.train import parse_run
from internvideo_jax.training import loop
from internvideo_jax.training.metrics import METRICS, read_metrics
from internvideo_jax.training.stages.classify import ClassifyStage
from internvideo_jax.training.stages.pretrain import PretrainStage

CONFIGS = {
    "image teacher": image_teacher.get_config,
    "video teacher": video_teacher.get_config,
    "stage 1": pretrain.get_config,
}
# In the folder of the runs, once all is done: the next demo starts anew.
_FINISHED = "finished"


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What a run has left.

    Attributes:
      name: of the run.
      directory: its folder.
      steps: its length.
    """

    name: str
    directory: Path
    steps: int

    @property
    def model(self) -> Path:
        """The saved model."""
        return self.directory / loop.MODEL

    @property
    def untrained(self) -> Path:
        """The saved model that training started from."""
        return _untrained(self.directory)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of its metrics file."""
        return read_metrics(self.directory / METRICS)

    def data_wait(self) -> float:
        """Share of the steps' time that the device waited for data."""
        return float(np.mean([x["data_wait"] for x in self.metrics() if "data_wait" in x] or [0.0]))


def recipe(name: str, size: str, initial: Path | None = None) -> Recipe:
    """A run's parts.

    Args:
      name: key of `CONFIGS`.
      size: key of `configs.demo.common.SIZES`.
      initial: saved model to start from.
    """
    config = CONFIGS[name](size)
    if initial is not None:
        config.stage.initial = str(initial)
    return parse_run(config)


def open_folder(size: str, folder: Path) -> Path:
    """The folder of the runs of a size: a new one, or one that was left before its end.

    Its name depends on the runs' configs, so that a demo of another version does not go on in it.
    """
    configs = [dataclasses.asdict(common.SIZES[size])]
    configs += [recipe(name, size).as_json for name in CONFIGS]
    digest = hashlib.sha256(json.dumps(configs).encode()).hexdigest()[:8]
    directory = folder / f"{size}-{digest}"
    if (directory / _FINISHED).exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def close_folder(directory: Path) -> None:
    """Marks the runs in a folder as done."""
    (directory / _FINISHED).touch()


def train(
    name: str, size: str, folder: Path, make_batches: Callable[[int, int], Batches], part: Part
) -> TrainedModel:
    """Trains from random weights, or goes on from the newest checkpoint.

    Args:
      name: key of `CONFIGS`.
      size: key of `configs.demo.common.SIZES`.
      folder: of `open_folder`.
      make_batches: gives the batches from their size and a seed.
      part: where the FLOPs of the whole run are noted.

    Raises:
      arguments.Terminated: SIGTERM, after a checkpoint.
      OSError, ValueError: as `training.loop.train`.
    """
    directory = folder / name.replace(" ", "_")
    plan = recipe(name, size, _untrained(directory))
    stage, config = plan.stage, plan.train
    assert isinstance(stage, ClassifyStage | PretrainStage)
    assert config.steps is not None
    save_untrained(_untrained(directory), stage, config.seed)
    part.flops = sum(stage.flops().values()) * float(config.rows * config.steps)
    batches = make_batches(config.batch_size, config.seed)
    if not loop.train(stage, config, batches, directory, run_config=plan.as_json):
        raise arguments.Terminated
    return TrainedModel(name, directory, config.steps)


def _untrained(directory: Path) -> Path:
    return directory / "untrained"
