"""What `train` says of a run before it begins and after its end."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from internvideo_jax.launch.common.run_config import Run

if TYPE_CHECKING:
    from internvideo_jax.training.config import TrainConfig

_log = logging.getLogger(__name__)

# Below this, AdamW hardly moves any weight.
_SMALL_RATE = 1e-6
# Classes and clips that are said one by one.
_MAX_SAID = 20
# Longer lists take more than seconds to compare.
_MAX_COMPARED = 1_000_000


def say_what_next(run: Run, workdir: Path) -> None:
    """Prints where a complete run has its models, its last metrics, and what takes the models."""
    import jax

    from internvideo_jax.models.dual_encoder import DualEncoder
    from internvideo_jax.training import outputs

    if jax.process_index():
        return
    model = workdir / outputs.MODEL
    averaged = workdir / outputs.MODEL_EMA
    print(f"trained -> {model}" + f" and, of averaged weights, {averaged}" * averaged.exists())
    if values := outputs.final_metrics(workdir):
        shown = (f"{name.removeprefix('eval/')} {value:.4g}" for name, value in values.items())
        print(f"last measured: {', '.join(shown)}")
    print("next:")
    quoted = shlex.quote(str(model))
    if run.stage.num_classes is None:
        print(f"  internvideo-jax extract FILE_OR_FOLDER --model={quoted} --output=DIR")
        if isinstance(run.stage.module, DualEncoder):
            recipe = "--config=configs/eval/retrieval.py:custom"
            clips = "--config.eval_data.annotations=LIST --config.eval_data.root=DIR"
            print(f"  internvideo-jax evaluate --model={quoted} {recipe} {clips} --output=DIR")
        return
    print(f"  internvideo-jax predict FILE_OR_FOLDER --model={quoted}")
    lists = "--annotations=LIST_OR_FOLDER"
    print(f"  internvideo-jax evaluate --model={quoted} {lists} --output=DIR")


def say_held_out(run: Run) -> None:
    """Says how many clips of each class `validation_share` keeps from training."""
    from internvideo_jax.data.annotations.class_counts import count_labels, named
    from internvideo_jax.data.examples import Clips

    if run.eval_data is None or run.eval_data.part != "validation":
        return
    held_out, kept = (
        count_labels(clips[index].record for index in range(len(clips)))
        for clips in (Clips(run.eval_data), Clips(run.data))
    )
    # Clips with captions need no labels.
    classes = [label for label in kept if label is not None]
    each = [f"{label} {held_out[label]} of {held_out[label] + kept[label]}" for label in classes]
    more = f", and {len(each) - _MAX_SAID} more classes" if len(each) > _MAX_SAID else ""
    of_each = f" ({', '.join(sorted(each)[:_MAX_SAID])}{more})" if each else ""
    total = held_out.total() + kept.total()
    _log.info("held out to evaluate on: %d of %d clips%s", held_out.total(), total, of_each)
    if without := [label for label in classes if not held_out[label]]:
        _log.warning("no clip is held out of the classes %s: add clips", named(without))


def say_overlap(run: Run) -> None:
    """Warns of clips to evaluate on that lie in files which are trained on."""
    from internvideo_jax.data.examples import Clips

    if run.eval_data is None or not run.eval_data.has_clips or run.eval_data.part == "validation":
        return
    train, evaluated = Clips(run.data), Clips(run.eval_data)
    if max(len(train), len(evaluated)) > _MAX_COMPARED:
        return
    seen = set(train.paths())
    if both := sum(path in seen for path in evaluated.paths()):
        _log.warning(
            "%d of the %d clips to evaluate on are of files that are trained on, too: they tell"
            " nothing of unseen ones",
            both,
            len(evaluated),
        )


def say_epoch(run: Run, steps_per_epoch: int) -> None:
    """Says so where the batches of an epoch do not make up all clips."""
    from internvideo_jax.data.examples import Clips

    count, seen = len(Clips(run.data)), steps_per_epoch * run.train.batch_size
    # Of a mixture, passes over all clips are no unit.
    if run.train.counts_epochs and seen < count and not run.data.mixture:
        _log.info(
            "an epoch is %d steps of %d clips: %d of the %d, the other %d begin the next one",
            steps_per_epoch,
            run.train.batch_size,
            seen,
            count,
            count - seen,
        )


def say_rate(config: "TrainConfig", steps_per_epoch: int) -> None:
    """Says which learning rate results, since the batch decides what it is good for."""
    rate, warmup = config.optimizer.lr, config.lengths(steps_per_epoch).warmup
    said = f"{rate:.3g} (per 256 rows {rate * 256 / config.rows:.3g})"
    _log.info("peak learning rate %s after %d warm-up steps", said, warmup)
    if rate < _SMALL_RATE:
        _log.warning(
            "a learning rate of %.3g hardly changes the weights in batches of %d rows; set"
            " --config.train.optimizer.lr",
            rate,
            config.rows,
        )


def name_unreadable(what: str, reasons: Mapping[str, str]) -> None:
    """Warns of clips, the first of many, with the reasons by their paths."""
    for path, reason in list(reasons.items())[:_MAX_SAID]:
        _log.warning("%s: %s: %s", what, path, reason)
    if len(reasons) > _MAX_SAID:
        _log.warning(
            "%s: %d more; `internvideo-jax scan` names all", what, len(reasons) - _MAX_SAID
        )
