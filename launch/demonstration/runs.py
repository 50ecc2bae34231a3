"""The demo's training runs: recipe, first weights, the loop, and what it leaves."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.configs.demo import common, image_teacher, pretrain, video_teacher
from internvideo_jax.launch import arguments
from internvideo_jax.launch import train as command
from internvideo_jax.launch.demonstration.meter import Part
from internvideo_jax.launch.demonstration.weights import save_untrained
from internvideo_jax.training.loop import MODEL
from internvideo_jax.training.metrics import METRICS, read_metrics

CONFIGS = {
    "image teacher": image_teacher.get_config,
    "video teacher": video_teacher.get_config,
    "stage 1": pretrain.get_config,
}
UNTRAINED = "untrained"
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
        return self.directory / MODEL

    @property
    def untrained(self) -> Path:
        """The saved model that training started from."""
        return self.directory / UNTRAINED

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of its metrics file."""
        return read_metrics(self.directory / METRICS)

    def data_wait(self) -> float:
        """Share of the steps' time that the device waited for data."""
        return float(np.mean([x["data_wait"] for x in self.metrics() if "data_wait" in x] or [0.0]))


def recipe(name: str, size: str, initial: Path | None = None, **data: str) -> command.Run:
    """A run's parts.

    Args:
      name: key of `CONFIGS`.
      size: key of `configs.demo.common.SIZES`.
      initial: saved model to start from.
      **data: fields of the `DataConfig` that only this machine knows.
    """
    config = CONFIGS[name](size)
    if initial is not None:
        config.stage.initial = str(initial)
    config.data.update(data)
    return command.parse_run(config)


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


def train(name: str, size: str, folder: Path, part: Part, **data: str) -> TrainedModel:
    """Trains from random weights, or goes on from the newest checkpoint.

    Args:
      name: key of `CONFIGS`.
      size: key of `configs.demo.common.SIZES`.
      folder: of `open_folder`.
      part: where the FLOPs of the whole run are noted.
      **data: as in `recipe`.

    Raises:
      arguments.Terminated: SIGTERM, after a checkpoint.
      OSError, ValueError: as `training.loop.train`.
    """
    directory = folder / name.replace(" ", "_")
    run = recipe(name, size, directory / UNTRAINED, **data)
    assert run.train.steps is not None
    save_untrained(directory / UNTRAINED, run.stage, run.train.seed)
    part.flops = sum(run.stage.flops().values()) * float(run.train.rows * run.train.steps)
    if not command.train(run, directory):
        raise arguments.Terminated
    return TrainedModel(name, directory, run.train.steps)
