"""What the stage-1 recipes share: encoders by size, data sets by name, ConfigDicts."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

from internvideo_jax.config import nearest_name
from internvideo_jax.data.config import DataConfig, Sampling
from internvideo_jax.models import video_vit
from internvideo_jax.models.video_vit import VideoViTConfig
from internvideo_jax.nn.stack import Remat
from internvideo_jax.training.config import TrainConfig

SIZES: dict[str, Callable[[], VideoViTConfig]] = {
    "s14": video_vit.internvideo2_s14,
    "b14": video_vit.internvideo2_b14,
    "l14": video_vit.internvideo2_l14,
    "1b": video_vit.internvideo2_1b,
    "6b": video_vit.internvideo2_6b,
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set as the recipes read it.

    Attributes:
      num_classes: number of labels.
      separator: between path and label in its lists.
      format: "csv" lists of video files, or "frames" for folders of images.
      sampling: how frames are picked.
      flip: whether left and right may be swapped; the actions of Something-Something name them.
      frame_pattern: names of the images in a folder.
    """

    num_classes: int
    separator: str = " "
    format: Literal["csv", "frames"] = "csv"
    sampling: Sampling = "sparse"
    flip: bool = True
    frame_pattern: str = "img_{:05}.jpg"


DATASETS = {
    "k400": Dataset(400, ","),
    "k600": Dataset(600, ","),
    "k700": Dataset(700, ","),
    "k710": Dataset(710, ","),
    "mit": Dataset(339),
    "anet": Dataset(200),
    "hacs": Dataset(200),
    "ssv1": Dataset(
        174, format="frames", sampling="tsn_frames", flip=False, frame_pattern="{:05}.jpg"
    ),
    "ssv2": Dataset(174, format="frames", sampling="tsn_frames", flip=False),
    "hmdb51": Dataset(51, format="frames", sampling="tsn_frames"),
    "ucf101": Dataset(101, sampling="dense"),
}


def encoder(size: str, **changes: Any) -> VideoViTConfig:
    """The encoder of a size in bfloat16; the blocks of the large ones are recomputed."""
    remat: Remat = "full" if size in ("1b", "6b") else "none"
    return dataclasses.replace(SIZES[size](), dtype="bfloat16", remat=remat, **changes)


def scaled(rate: float, batch_size: int, num_sample: int = 1) -> float:
    """A learning rate for a global batch, of which upstream's scripts give the rate per 256 rows.

    Upstream scales peak, final and warm-up rates alike. `batch_size` counts what one optimizer step
    sees (fine-tuning: gradient accumulation included); `num_sample` is the number of augmented
    copies of each clip.
    """
    return rate * batch_size * num_sample / 256


def choose(recipes: dict[str, Any], name: str, file: str) -> Any:
    """The recipe of that name.

    Raises:
      ValueError: there is none; lists all.
    """
    if name in recipes:
        return recipes[name]
    raise ValueError(
        f"expected a recipe of configs/stage1/{file}, found {name!r}{nearest_name(name, recipes)}"
        f" (recipes: {', '.join(recipes)})"
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


def classification_data(
    dataset: Dataset, config: DataConfig, *, segments: int, crops: int
) -> tuple[DataConfig, DataConfig]:
    """Training data like `config` and evaluation data of a data set.

    Args:
      dataset: which.
      config: size, length and augmentation of the training clips.
      segments: temporal views in evaluation.
      crops: spatial views in evaluation.
    """
    data = dataclasses.replace(
        config,
        format=dataset.format,
        separator=dataset.separator,
        frame_pattern=dataset.frame_pattern if dataset.format == "frames" else None,
        num_classes=dataset.num_classes,
        sampling=dataset.sampling,
        flip=dataset.flip,
    )
    views = dataclasses.replace(
        data, augmentation="none", num_sample=1, segments=segments, crops=crops
    )
    return data, views


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
    options: Iterable[Any] = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
    simple = [option for option in options if option in (bool, int, float, str)]
    return config_dict.placeholder(simple[0]) if len(simple) == 1 else None
