"""From a ConfigDict to the checked parts of a run: what is unset follows from the data."""

import copy
import dataclasses
import json
import os
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from internvideo_jax.launch.common.run_classes import complete_classes

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.training.config import TrainConfig
    from internvideo_jax.training.stage import Batches, Stage

_PARTS = ("stage", "train", "data")
# Of clips to evaluate on: what those to train on say, too.
_FOLLOWING = (
    *("root", "format", "separator", "frame_pattern"),
    *("num_frames", "image_size", "num_classes"),
)
# Fields that say where clips are.
_PLACES = ("annotations", "shards", "tfds", "mixture")


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run's config, checked.

    Attributes:
      stage: what to train.
      train: how.
      data: the training clips.
      eval_data: clips to evaluate on; None without evaluation.
      as_json: the whole config, ready for JSON; checkpoints keep it with the clips' fingerprint.
    """

    stage: "Stage"
    train: "TrainConfig"
    data: "DataConfig"
    eval_data: "DataConfig | None"
    as_json: dict[str, Any]

    def kinds(self) -> "dict[str, Batches]":
        """The batches by their kind of media; without clips, all kinds that the stage has.

        Raises:
          ValueError: the stage has no such kind.
        """
        from internvideo_jax.training.stage import Batches

        if not self.data.has_clips:
            return {m: Batches(self.stage.of_media(m), self.train.rows) for m in self.stage.media}
        return {
            member.media: Batches(
                self.stage.of_media(member.media, member.num_frames, member.image_size),
                (member.batch_size or self.train.batch_size) * self.train.num_sample,
            )
            for member in reversed(self.data.members)
        }


def parse_run(config: "ConfigDict") -> Run:
    """Turns a ConfigDict with `stage`, `train`, `data` and perhaps `eval_data` into dataclasses.

    Fields that are unset follow from the others (`completed`).

    Raises:
      ValueError: a part is missing or has wrong fields, or two parts contradict each other.
    """
    from internvideo_jax.config import from_dict, to_dict
    from internvideo_jax.data.config import DataConfig
    from internvideo_jax.training.config import TrainConfig
    from internvideo_jax.training.stages import make_stage

    if any(name not in config for name in _PARTS) or any(
        name not in (*_PARTS, "eval_data") for name in config
    ):
        raise ValueError(
            f"expected a config with {', '.join(_PARTS)} and perhaps eval_data, found"
            f" {', '.join(config)}; start from a file of configs/stage1"
        )
    parts = completed(config.to_dict())
    stage_config = parts["stage"]
    if (stage_config.get("model") or {}).get("num_classes", 0) is None:
        raise ValueError(
            "expected clips whose classes can be counted, found none; set"
            " --config.data.annotations=LIST_OR_FOLDER (or --config.stage.model.num_classes)"
        )
    # The names of the classes, not the file of them, which may have changed when a run goes on.
    named = {"classes": tuple(stage_config["classes"])} if stage_config.get("classes") else {}
    data = from_dict(DataConfig, parts["data"] | named, "config.data")
    try:
        train = from_dict(TrainConfig, parts["train"], "config.train")
    except ValueError:
        # Rates may follow the batch, which then is what is wrong.
        _check_batch_size(parts["train"].get("batch_size"), data)
        raise
    eval_config = parts.get("eval_data")
    eval_data = eval_config and from_dict(DataConfig, eval_config | named, "config.eval_data")
    if data.num_sample != train.num_sample:
        raise ValueError(
            f"expected one number of augmented copies, found data.num_sample={data.num_sample} and"
            f" train.num_sample={train.num_sample}; set both alike"
        )
    stage = make_stage(stage_config)
    _check_fits(stage, data, "config.data")
    if data.multi_label and stage.num_classes is not None:
        raise ValueError(
            "config.data.multi_label: expected False, as this stage trains with one label for each"
            " clip, found True"
        )
    if eval_data and eval_data.has_clips:
        _check_fits(stage, eval_data, "config.eval_data")
    as_json = {
        # Tuples become the lists that a checkpoint gives back.
        "stage": json.loads(json.dumps(stage_config)),
        "train": to_dict(train),
        "data": to_dict(data),
        "eval_data": eval_data and to_dict(eval_data),
    }
    run = Run(stage, train, data, eval_data, as_json)
    # Refuses media that the stage does not have.
    run.kinds()
    return run


def _check_batch_size(batch_size: Any, data: "DataConfig") -> None:
    """Raises ValueError for what is no batch of the clips, where these can be counted."""
    from internvideo_jax.data.examples import Clips
    from internvideo_jax.data.pipeline import check_batch_size

    try:
        count = len(Clips(data))
    except (ValueError, OSError):
        return
    if type(batch_size) is int:
        check_batch_size(batch_size, count)


def _check_fits(stage: "Stage", data: "DataConfig", where: str) -> None:
    """Raises ValueError naming all fields in which the data are not what the stage takes."""
    batch: dict[str, Any] = {}
    for media in reversed(stage.media):
        batch |= stage.of_media(media).example_batch(1)
    wanted: dict[str, Any] = {}
    found = {name: getattr(data, name) for name in ("num_frames", "image_size", "num_classes")}
    found |= {f"audio.{name}": getattr(data.audio, name) for name in ("num_frames", "num_mels")}
    found |= {n: getattr(data, n) for n in ("max_text_length", "tokenizer", "prompt")}
    if "video" in batch:
        wanted["num_frames"], wanted["image_size"] = batch["video"].shape[1:3]
    if "audio" in batch:
        wanted["audio.num_frames"], wanted["audio.num_mels"] = batch["audio"].shape[1:]
    if "text" in batch:
        wanted["max_text_length"] = batch["text"].shape[1]
    if stage.preprocessing is not None and (text := stage.preprocessing.text) is not None:
        wanted |= {"tokenizer": text.tokenizer, "prompt": text.prompt}
    if stage.num_classes is not None:
        wanted["num_classes"] = stage.num_classes
    wrong = [
        f"{where}.{name}: expected {value!r} as in config.stage, found {found[name]!r}"
        for name, value in wanted.items()
        if found[name] != value
    ]
    if wrong:
        raise ValueError("; ".join(wrong) + "; set both alike")


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config, as plain dicts, with fields that are unset taken from where they follow.

    - `data`: frames and size from the model, augmented copies from `train`.
    - `stage.classes` and `stage.model.num_classes`: from the file `data.classes`, or from the
      labels of `data.annotations`: their names in alphabetical order, or the largest number.
    - `stage.vocabulary` and `data.vocabulary`: each other, or that of the model to start from.
    - `eval_data`: the clips that `data.validation_share` holds out, where that is set, which are
      then looked at after each epoch; paths, format, frames, size and classes from `data`.

    Raises:
      ValueError: the classes cannot be told, or `eval_data` names clips beside those held out.
    """
    completed = copy.deepcopy(dict(config))
    stage, data, eval_data = completed["stage"], completed["data"], completed.get("eval_data")
    _set(data, "num_sample", completed["train"].get("num_sample", 1))
    model = stage.get("model")
    towers = model or {}
    encoder = towers.get("encoder") or (towers.get("vision") or {}).get("encoder") or {}
    for name in ("num_frames", "image_size"):
        _set(data, name, encoder.get(name))
    if stage.get("kind") == "classify" and model is not None:
        complete_classes(stage, data, has_clips=_names_clips(data))
    if "vocabulary" in stage:
        _complete_vocabulary(stage, data)
    if data.get("validation_share") and not (eval_data and _is_held_out(eval_data, data)):
        _check_names_none(eval_data)
        eval_data = completed["eval_data"] = _held_out(data, eval_data)
        if completed["train"].get("eval_every") is None:
            _set(completed["train"], "eval_epochs", 1.0)
    if eval_data:
        for name in _FOLLOWING:
            _set(eval_data, name, data.get(name))
    return completed


def _set(fields: dict[str, Any], name: str, value: Any) -> None:
    """Sets a field that is unset, unless there is nothing to set it to."""
    if fields.get(name) is None and value is not None:
        fields[name] = value


def _complete_vocabulary(stage: dict[str, Any], data: dict[str, Any]) -> None:
    beside = [stage[name] for name in ("initial", "initial_text") if stage.get(name)]
    found = map(_vocabulary_of, beside)
    given = (stage.get("vocabulary"), data.get("vocabulary"), *found)
    vocabulary = next(filter(None, given), None)
    _set(stage, "vocabulary", vocabulary)
    _set(data, "vocabulary", vocabulary)
    if stage.get("vocabulary") != data.get("vocabulary"):
        raise ValueError(
            f"expected one vocabulary, found stage.vocabulary={stage['vocabulary']} and"
            f" data.vocabulary={data['vocabulary']}; set one of them"
        )


def _vocabulary_of(model: str) -> str | None:
    """The tokenizer's file of a saved model, if there is one."""
    folder = os.path.join(model, "tokenizer")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return os.path.join(folder, names[0]) if len(names) == 1 else None


def _held_out(data: dict[str, Any], eval_data: dict[str, Any] | None) -> dict[str, Any]:
    """The clips that `validation_share` holds out, as `eval_data` shows them, or else plainly."""
    from internvideo_jax.data.config import ClipSet

    views = dict(eval_data or data | {"augmentation": "none", "num_sample": 1})
    clips = {field.name: data[field.name] for field in dataclasses.fields(ClipSet)}
    share = data["validation_share"]
    return views | clips | {"validation_share": share, "part": "validation"}


def _is_held_out(eval_data: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Whether `eval_data` states what `_held_out` makes, as a printed config does."""
    same = all(eval_data.get(n) == data.get(n) for n in ("annotations", "validation_share"))
    return same and eval_data.get("part") == "validation"


def _check_names_none(eval_data: Mapping[str, Any] | None) -> None:
    """Raises ValueError where clips to evaluate on would leave those held out unused."""
    if eval_data and _names_clips(eval_data):
        name = next(f"{n}={eval_data[n]}" for n in _PLACES if eval_data.get(n))
        raise ValueError(
            "expected either clips of the training list to evaluate on, or others, found both:"
            f" data.validation_share and eval_data.{name}; the share would be neither trained nor"
            " evaluated on: unset one of the two"
        )


def _names_clips(data: Mapping[str, Any]) -> bool:
    return any(data.get(name) for name in _PLACES)


def print_config(config: "ConfigDict", recipe: "ConfigDict") -> None:
    """Prints every field of a run's config as an option, with what the recipe has where it differs.

    Args:
      config: of the run, with what was set on the command line.
      recipe: as its file makes it.
    """
    before = _flat(recipe.to_dict())
    for name, value in _flat(completed(config.to_dict())).items():
        if value is None and any(other.startswith(f"{name}.") for other in before):
            print(f"--config.{name}=None  # recipe: fields of its own")
            continue
        old = before.get(name)
        note = "" if value == old else f"  # recipe: {'unset' if old is None else old}"
        option = f"--config.{name} is unset" if value is None else f"--config.{name}={value}"
        print(f"# {option}" if value is None else f"{_quoted(option)}{note}")


def _quoted(option: str) -> str:
    """An option as a shell takes it, in double quotes where that is enough."""
    quoted = shlex.quote(option)
    return quoted if quoted == option or set(option) & set('"$`\\!') else f'"{option}"'


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested dicts by their dotted names."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else None
        fields |= inner if inner else {f"{prefix}{name}": value}
    return fields
