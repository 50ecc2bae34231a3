"""What the stage-1 recipes share: encoders by size, data sets by name, runs, ConfigDicts."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict, config_dict

from internvideo_jax.config import nearest_name
from internvideo_jax.data.config import DataConfig, Sampling
from internvideo_jax.models import video_vit
from internvideo_jax.models.video_vit import VideoViTConfig
from internvideo_jax.nn.stack import Remat
from internvideo_jax.training.config import OptimizerConfig, TrainConfig
from internvideo_jax.training.stages.classify import ClassifyConfig

SIZES: dict[str, Callable[[], VideoViTConfig]] = {
    "s14": video_vit.internvideo2_s14,
    "b14": video_vit.internvideo2_b14,
    "l14": video_vit.internvideo2_l14,
    "1b": video_vit.internvideo2_1b,
    "6b": video_vit.internvideo2_6b,
}


def _videos(num_classes: int, separator: str = " ", sampling: Sampling = "sparse") -> DataConfig:
    """A data set with lists of video files and labels."""
    return DataConfig(
        format="csv", separator=separator, num_classes=num_classes, sampling=sampling, flip=True
    )


def _frames(
    num_classes: int, *, flip: bool = True, frame_pattern: str = "img_{:05}.jpg"
) -> DataConfig:
    """A data set with lists of folders of images, how many there are, and labels."""
    return DataConfig(
        format="frames",
        separator=" ",
        frame_pattern=frame_pattern,
        num_classes=num_classes,
        sampling="tsn_frames",
        flip=flip,
    )


DATASETS = {
    "k400": _videos(400, ","),
    "k600": _videos(600, ","),
    "k700": _videos(700, ","),
    "k710": _videos(710, ","),
    "mit": _videos(339),
    "anet": _videos(200),
    "hacs": _videos(200),
    # The actions of Something-Something name left and right.
    "ssv1": _frames(174, flip=False, frame_pattern="{:05}.jpg"),
    "ssv2": _frames(174, flip=False),
    "hmdb51": _frames(51),
    "ucf101": _videos(101, sampling="dense"),
}


def encoder(size: str, **changes: Any) -> VideoViTConfig:
    """The encoder of a size in bfloat16; the blocks of the large ones are recomputed."""
    remat: Remat = "full" if size in ("1b", "6b") else "none"
    return dataclasses.replace(SIZES[size](), dtype="bfloat16", remat=remat, **changes)


def in_bfloat16(teacher: Any) -> Any:
    """The config of a teacher whose encoder computes in bfloat16."""
    encoder = dataclasses.replace(teacher.encoder, dtype="bfloat16")
    return dataclasses.replace(teacher, encoder=encoder)


def scaled(rate: float, batch_size: int, num_sample: int = 1) -> float:
    """A learning rate for a global batch, of which upstream's scripts give the rate per 256 rows.

    Upstream scales peak, final and warm-up rates alike. `batch_size` counts what one optimizer step
    sees (fine-tuning: gradient accumulation included); `num_sample` is the number of augmented
    copies of each clip.
    """
    return rate * batch_size * num_sample / 256


def choose(recipes: dict[str, Any], name: str, file: str, others: Iterable[str] = ()) -> Any:
    """The recipe of that name.

    Args:
      recipes: by name.
      name: of one of them.
      file: below configs/, that asks.
      others: recipes of this file that are made elsewhere.

    Raises:
      ValueError: there is none; lists all.
    """
    if name in recipes:
        return recipes[name]
    known = [*recipes, *others]
    raise ValueError(
        f"expected a recipe of configs/{file}, found {name!r}{nearest_name(name, known)}"
        f" (recipes: {', '.join(known)})"
    )


def as_config(obj: Any) -> ConfigDict:
    """A dataclass as a ConfigDict in which fields that are None can be set later."""
    hints = typing.get_type_hints(type(obj))
    config = ConfigDict()
    for field in dataclasses.fields(obj):
        value = getattr(obj, field.name)
        if value is None:
            value = _placeholder(hints[field.name])
        elif dataclasses.is_dataclass(value):
            value = as_config(value)
        config[field.name] = value
    return config


def alignment_run(
    kind: str,
    stage: Any,
    *,
    batch_size: int,
    epochs: int,
    warmup: int,
    lr: float,
    max_grad_norm: float,
    num_frames: int,
) -> ConfigDict:
    """The config of pre-training or distillation.

    Args:
      kind: as in `run_config`.
      stage: its config.
      batch_size: clips of an optimizer step.
      epochs: passes over the data.
      warmup: epochs of warm-up among them.
      lr: peak learning rate per 256 clips.
      max_grad_norm: bound of the gradient's norm.
      num_frames: frames of the clips.
    """
    train = TrainConfig(
        batch_size=batch_size,
        epochs=epochs,
        warmup_epochs=warmup,
        optimizer=OptimizerConfig(
            lr=scaled(lr, batch_size),
            min_lr=scaled(1e-5, batch_size),
            warmup_lr=0.0,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.05,
            max_grad_norm=max_grad_norm,
        ),
    )
    data = DataConfig(
        format="pretrain",
        sampling="pretraining",
        num_frames=num_frames,
        sampling_rate=1,
        augmentation="pretraining",
        flip=True,
    )
    return run_config(kind, stage, train, data, None)


def classification_run(
    recipe: Any,
    stage: ClassifyConfig,
    dataset: DataConfig,
    *,
    num_sample: int = 1,
    weight_decay: float,
    layer_decay: float = 1.0,
    rand_augment: str = "rand-m7-n4-mstd0.5-inc1",
    crops: int = 3,
) -> ConfigDict:
    """The config of fine-tuning or probing.

    Args:
      recipe: a line of `finetune.RECIPES` or `probe.RECIPES`: batch, lengths, rates, segments.
      stage: model and first weights.
      dataset: one of `DATASETS`.
      num_sample: augmented copies of each clip.
      weight_decay: decoupled weight decay.
      layer_decay: factor between the rates of neighbouring layers.
      rand_augment: RandAugment of the training clips.
      crops: spatial views in evaluation.
    """
    rows = recipe.batch_size, num_sample
    train = TrainConfig(
        batch_size=recipe.batch_size,
        num_sample=num_sample,
        epochs=recipe.epochs,
        warmup_epochs=recipe.warmup,
        optimizer=OptimizerConfig(
            lr=scaled(recipe.lr, *rows),
            min_lr=scaled(recipe.min_lr, *rows),
            warmup_lr=scaled(1e-6, *rows),
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
        ),
    )
    data = dataclasses.replace(
        dataset,
        num_frames=stage.model.encoder.num_frames,
        image_size=stage.model.encoder.image_size,
        augmentation="finetuning",
        rand_augment=rand_augment,
        erase_probability=0.25,
        num_sample=num_sample,
    )
    views = dataclasses.replace(
        data, augmentation="none", num_sample=1, segments=recipe.segments, crops=crops
    )
    return run_config("classify", stage, train, data, views)


def run_config(
    kind: str, stage: Any, train: TrainConfig, data: DataConfig, eval_data: DataConfig | None
) -> ConfigDict:
    """The config of a run whose stage is of a `kind` in `training.stages.STAGES`."""
    config = ConfigDict()
    config.stage = ConfigDict({"kind": kind})
    config.stage.update(as_config(stage))
    config.train = as_config(train)
    config.data = as_config(data)
    config.eval_data = None if eval_data is None else as_config(eval_data)
    return config


def _placeholder(hint: Any) -> Any:
    """An empty field of the one simple type of a union with None."""
    # Of annotated types, `|` makes the older kind of union.
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options: Iterable[Any] = typing.get_args(hint) if is_union else ()
    simple = [option for option in options if option in (bool, int, float, str)]
    return config_dict.placeholder(simple[0]) if len(simple) == 1 else None
