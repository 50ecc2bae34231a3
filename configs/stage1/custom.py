"""Training on one's own classes: the recipes `SIZE,custom` of `finetune.py` and `probe.py`.

Nothing in them depends on the data but by fields that are unset: classes, their number and clips to
evaluate on follow from `data` (`launch.common.run_config`). Upstream has no such recipes; the rates
are those that small sets of clips are commonly fine-tuned with, and grow with the batch.
"""

import dataclasses

from ml_collections import ConfigDict, config_dict

from internvideo_jax.configs.demo import common as demo
from internvideo_jax.configs.stage1 import common
from internvideo_jax.data.config import DataConfig
from internvideo_jax.models import VideoClassifierConfig, VideoViTConfig
from internvideo_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from internvideo_jax.training.mixup import MixConfig
from internvideo_jax.training.stages.classify import ClassifyConfig, ProbeConfig

DATASET = "custom"

# Few classes are learnt from clean clips, whose accuracy says what it seems to say.
_UNMIXED = MixConfig(mixup_alpha=0.0, cutmix_alpha=0.0, probability=0.0, label_smoothing=0.0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an encoder of a size is trained on few clips.

    Attributes:
      start: weights to start from; "" allows to start from nothing.
      lr: peak learning rate of fine-tuning, for batches of `batch_size`; others change it in
        proportion.
      layer_decay: factor between the rates of neighbouring layers.
      drop_path: stochastic depth of the last block.
      batch_size: clips of an optimizer step.
      epochs: passes over the data.
    """

    start: str
    lr: float
    layer_decay: float
    drop_path: float
    batch_size: int = 16
    epochs: float = 30.0


RECIPES = {
    # The encoder of the demo, for small clips of simple things and for trials on a CPU.
    "tiny": Recipe("", 5e-4, 1.0, 0.0, epochs=20.0),
    "s14": Recipe("internvideo2-s14-k710", 1e-4, 0.75, 0.1),
    "b14": Recipe("internvideo2-b14-k710", 1e-4, 0.75, 0.1),
    "l14": Recipe("internvideo2-l14-k710", 5e-5, 0.8, 0.1),
    "1b": Recipe("internvideo2-1b-k710", 2e-5, 0.9, 0.2),
    "6b": Recipe("internvideo2-6b-k710", 1e-5, 0.915, 0.2),
}
# Share of a run's length.
_WARMUP = 0.1
# Of batches of 16: an attention pooler and a layer are trained, whatever the encoder.
_PROBE_LR = 1e-3


def names() -> list[str]:
    """The recipes of `finetune.py` and of `probe.py`, which are called alike."""
    return [f"{size},{DATASET}" for size in RECIPES]


def finetune(size: str) -> ConfigDict:
    """The config that trains all weights of an encoder on one's own classes."""
    recipe = RECIPES[size]
    betas = (0.9, 0.98) if size == "tiny" else (0.9, 0.999)
    optimizer = OptimizerConfig(
        recipe.lr, betas=betas, layer_decay=recipe.layer_decay, max_grad_norm=3.0
    )
    return _config(size, recipe.drop_path, optimizer, probe=None)


def probe(size: str) -> ConfigDict:
    """The config that trains the attention pooler and a head on a frozen encoder."""
    optimizer = OptimizerConfig(_PROBE_LR, weight_decay=0.0, max_grad_norm=3.0)
    return _config(size, 0.0, optimizer, ProbeConfig(open_clip_projector=True))


def _config(
    size: str, drop_path: float, optimizer: OptimizerConfig, probe: ProbeConfig | None
) -> ConfigDict:
    recipe = RECIPES[size]
    train = TrainConfig(
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        warmup_epochs=_WARMUP * recipe.epochs,
        eval_epochs=1.0,
        checkpoint=CheckpointConfig(every_steps=200),
        optimizer=optimizer,
    )
    stage = ClassifyConfig(
        # One class stands for a number that the data tell.
        VideoClassifierConfig(_encoder(size, drop_path), 1),
        mix=_UNMIXED,
        probe=probe,
        starts_from=recipe.start,
        fan_in=size == "tiny",
    )
    # Classes may be called left and right.
    data = DataConfig(augmentation="finetuning", flip=False)
    if size == "tiny":
        stage = dataclasses.replace(stage, model=demo.classifier(stage.model.encoder, 1).model)
        data = dataclasses.replace(data, augmentation="none", sampling="uniform")
    views = dataclasses.replace(data, augmentation="none")
    config = common.run_config("classify", stage, train, data, views)

    config.stage.model.num_classes = config_dict.placeholder(int)
    config.stage.new_head = config_dict.placeholder(bool)
    config.eval_data.format = config_dict.placeholder(str)
    for part in (config.data, config.eval_data):
        for name in ("num_frames", "image_size", "num_sample"):
            part[name] = config_dict.placeholder(int)
    config.eval_data.num_sample = 1
    # References, which follow length and batch unless they are set.
    config.train.warmup_epochs = config.train.get_ref("epochs") * _WARMUP
    rate = config_dict.FieldReference(optimizer.lr / recipe.batch_size)
    for name in ("batch_size", "num_sample"):
        rate = rate * config.train.get_ref(name)
    config.train.optimizer.lr = rate
    config.train.optimizer.min_lr = config.train.optimizer.get_ref("lr") * 0.01
    return config


def _encoder(size: str, drop_path: float) -> VideoViTConfig:
    if size == "tiny":
        return demo.encoder(demo.SIZES["full"])
    return common.encoder(size, drop_path_rate=drop_path)
