"""The `train` part of a run's config, and what may change in a config when a run resumes."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import optax
from flax.traverse_util import flatten_dict

from internvideo_jax.parallel.mesh import MeshConfig
from internvideo_jax.training.optimizer import OptimizerConfig, adamw, part_of
from internvideo_jax.training.schedules import floored_cosine, warmup_cosine
from internvideo_jax.training.stage import Stage

# Dotted names (with everything below them) that do not change what a run computes, apart from the
# order of sums on another mesh. `train.steps` is none of them: the schedule is made for it.
FREE_FIELDS = (
    "train.log_every",
    "train.trackers",
    "train.eval_every",
    "train.eval_epochs",
    "train.checkpoint",
    "train.max_bad_steps",
    "train.hang_timeout",
    "train.mesh",
    "data.root",
    "data.workers",
    "data.cache_dir",
    "data.features_dir",
    "data.stall_timeout",
    "eval_data",
)


TrackerName = Literal["jsonl", "tensorboard", "wandb"]


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, found {getattr(config, name)}")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written (also at the end and before preemption).

    Attributes:
      every_steps: steps from one to the next; of a run of no more steps than that, a quarter.
      keep: how many of the newest stay.
    """

    every_steps: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        _check_positive(self, "every_steps", "keep")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever the stage.

    Attributes:
      batch_size: clips that one optimizer step sees, over all devices and micro-batches.
      optimizer: AdamW and its learning rates.
      steps: length of the run; unset, `epochs` says it.
      epochs: its length in passes over the data.
      warmup_steps: steps of linear warm-up; unset, `warmup_epochs` says it; none by default.
      warmup_epochs: the warm-up's length in passes over the data.
      num_sample: augmented copies of each clip; a step has `rows = batch_size * num_sample`.
      accumulation: micro-batches per step.
      ema_decay: decay of the running average of the weights; None keeps none.
      frozen_dtype: of the kernels that are not trained. Where the model computes in bfloat16,
        bfloat16 gives the same numbers in half the memory; int8 (`nn.int8`) rounds them, but for
        those outside linear layers, which are bfloat16 then.
      seed: of initial weights, draws and the order of the data.
      mesh: how the devices are arranged.
      checkpoint: when to write checkpoints.
      log_every: steps over which logged metrics are averaged.
      trackers: what the metrics are written to; `jsonl`, which a resumed run and the loss curve
        read, is always among them.
      eval_every: steps from one evaluation to the next (the last step has one too); unset,
        `eval_epochs` says it; with neither there is none.
      eval_epochs: passes over the data from one evaluation to the next.
      max_bad_steps: the run stops after so many non-finite losses or gradients in a row.
      hang_timeout: seconds after which processes that wait for each other end, each with where its
        threads are, if none of them gets on: a step, a batch of an evaluation or a checkpoint takes
        that long. A process without others may take its time.
    """

    batch_size: int
    optimizer: OptimizerConfig
    steps: int | None = None
    epochs: float | None = None
    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    num_sample: int = 1
    accumulation: int = 1
    ema_decay: float | None = None
    frozen_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = 10
    trackers: tuple[TrackerName, ...] = ("jsonl", "tensorboard")
    eval_every: int | None = None
    eval_epochs: float | None = None
    max_bad_steps: int = 10
    hang_timeout: float = 1800.0

    def __post_init__(self) -> None:
        _check_positive(
            self, "batch_size", "num_sample", "accumulation", "log_every", "max_bad_steps"
        )
        for name in ("steps", "eval_every"):
            if getattr(self, name) is not None:
                _check_positive(self, name)
        if self.eval_epochs is not None and not self.eval_epochs > 0:
            raise ValueError(f"eval_epochs: expected a number above 0, found {self.eval_epochs}")
        if not self.hang_timeout > 0:
            raise ValueError(f"hang_timeout: expected seconds above 0, found {self.hang_timeout}")
        if self.steps is None and self.epochs is None:
            raise ValueError("expected steps or epochs, found neither; set one of them")
        if "jsonl" not in self.trackers or len(set(self.trackers)) < len(self.trackers):
            raise ValueError(
                "trackers: expected different names, jsonl among them, as a resumed run reads it,"
                f" found {', '.join(self.trackers) or 'none'}"
            )
        if self.rows % self.accumulation:
            raise ValueError(
                f"expected batch_size * num_sample = {self.rows} rows that divide into"
                f" accumulation={self.accumulation} micro-batches; change one of them"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number in (0, 1), found {self.ema_decay}")

    @property
    def rows(self) -> int:
        """Rows of the global batch: clips times augmented copies."""
        return self.batch_size * self.num_sample

    @property
    def counts_epochs(self) -> bool:
        """Whether the number of steps depends on the size of the data."""
        warmup = self.warmup_steps is None and self.warmup_epochs is not None
        return self.steps is None or warmup

    def lengths(self, steps_per_epoch: int | None = None) -> "Lengths":
        """Numbers of steps of the run and of its warm-up.

        Args:
          steps_per_epoch: `data.pipeline.steps_per_epoch`; needed if epochs are given.

        Raises:
          ValueError: epochs without `steps_per_epoch`, or a warm-up longer than the run.
        """

        def count(steps: int | None, epochs: float | None) -> int:
            if steps is not None or epochs is None:
                return steps or 0
            if steps_per_epoch is None:
                raise ValueError("expected the number of steps per epoch to count epochs in steps")
            # Upstream's rounding.
            return int(epochs * steps_per_epoch)

        total = count(self.steps, self.epochs)
        warmup = count(self.warmup_steps, self.warmup_epochs)
        if not 0 <= warmup <= total or total < 1:
            raise ValueError(
                f"expected at least one step and a warm-up within the run, found {warmup} warm-up"
                f" steps of {total} (steps={self.steps}, epochs={self.epochs},"
                f" warmup_steps={self.warmup_steps}, warmup_epochs={self.warmup_epochs},"
                f" {steps_per_epoch} steps per epoch); change train.epochs or train.steps,"
                " train.warmup_epochs or train.warmup_steps, the batch or the data"
            )
        return Lengths(total, warmup)

    def with_eval_every(self, steps_per_epoch: int) -> "TrainConfig":
        """The config with the time of evaluations in steps."""
        if self.eval_every is not None or self.eval_epochs is None:
            return self
        steps = max(round(self.eval_epochs * steps_per_epoch), 1)
        return dataclasses.replace(self, eval_every=steps)

    def checkpoint_every(self, lengths: "Lengths") -> int:
        """Steps from one checkpoint to the next."""
        every = self.checkpoint.every_steps
        return every if every < lengths.total else math.ceil(lengths.total / 4)

    def schedule(self, lengths: "Lengths") -> optax.Schedule:
        """The learning rate of each step."""
        o = self.optimizer
        if o.schedule == "floored_cosine":
            return floored_cosine(o.lr, o.min_lr, lengths.total, lengths.warmup)
        return warmup_cosine(o.lr, o.min_lr, lengths.total, lengths.warmup, o.warmup_lr)

    def unit_optimizer(self, stage: Stage) -> optax.GradientTransformation:
        """AdamW at learning rate 1; the step multiplies its updates by the schedule's rate.

        So the rate follows the number of the step, also past steps that were skipped.
        """
        return adamw(1.0, self.optimizer, stage.module)

    def trainable(self, stage: Stage) -> Callable[[str], bool | np.ndarray]:
        """By path, whether a parameter is trained, as `Stage.trainable`: by stage and config."""
        parts = self.optimizer.parts
        return lambda path: not part_of(path, parts).frozen and stage.trainable(path)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Steps of a run, and how many of them are warm-up."""

    total: int
    warmup: int


# What fields stand for that no option sets.
_MEANINGS = {
    "clips.number": " (of clips in the training list, which has changed)",
    "clips.sha256": " (of the training list: its clips, labels or their order have changed)",
}


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each field that differs between two run configs and may not.

    Args:
      old: JSON-ready config of the checkpoint.
      new: JSON-ready config of the run that would resume.
    """
    flat_old, flat_new = _flat(old), _flat(new)
    names = sorted(flat_old.keys() | flat_new.keys())
    return [
        f"{name}{_MEANINGS.get(name, '')}: {_shown(flat_old, name)} in the checkpoint,"
        f" {_shown(flat_new, name)} now"
        for name in names
        if not _is_free(name)
        and (name not in flat_old or name not in flat_new or flat_old[name] != flat_new[name])
    ]


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE_FIELDS)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flatten_dict(config, sep=".", is_leaf=lambda _, value: not value))


def _shown(flat: Mapping[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else "absent"
