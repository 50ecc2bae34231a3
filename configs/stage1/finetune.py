"""Full fine-tuning of classifiers.

`configs/stage1/finetune.py:SIZE,DATASET[,VARIANT]`, for example `1b,k400`, `1b,k400,f16`,
`6b,mit,336`; `RECIPES` below holds all. Clips have 8 frames of 224x224 pixels; the variant `f16`
has 16 frames, `336` has 336x336 pixels. `SIZE,custom` is for classes of your own (`custom.py`,
docs/your_classes.md). Set the weights to start from and the data:

    --config.stage.initial=DIR --config.data.annotations=FILE --config.data.root=DIR
    --config.eval_data.annotations=FILE --config.eval_data.root=DIR

Source: `scripts/finetuning/full_tuning/` of upstream `InternVideo2/single_modality`. What its
scripts got wrong is listed in docs/stage1.md.
"""

import dataclasses

from ml_collections import ConfigDict

from internvideo_jax.configs.stage1 import common, custom
from internvideo_jax.models import VideoClassifierConfig
from internvideo_jax.training.stages.classify import ClassifyConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A line of the table below.

    Attributes:
      start: the weights to start from, a name of `internvideo-jax convert --list`.
      batch_size: clips of an optimizer step; there are `num_sample` augmented copies of each.
      per_gpu: clips of one GPU in upstream's run, which share a draw of mixup.
      epochs: passes over the data.
      warmup: epochs of warm-up among them.
      lr: peak learning rate per 256 rows.
      layer_decay: factor between the rates of neighbouring layers.
      drop_path: stochastic depth of the last block.
      min_lr: final learning rate per 256 rows.
      weight_decay: decoupled weight decay.
      num_sample: augmented copies of a clip.
      segments: temporal views in evaluation; there are three crops of each.
    """

    start: str
    batch_size: int
    per_gpu: int
    epochs: int
    warmup: int
    lr: float
    layer_decay: float
    drop_path: float
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    num_sample: int = 2
    segments: int = 4


R = Recipe
RECIPES = {
    "1b,k710": R("internvideo2-1b-pretrain", 256, 8, 9, 2, 5e-5, 0.9, 0.3),
    "6b,k710": R("internvideo2-6b-pretrain", 256, 4, 6, 1, 2.5e-5, 0.915, 0.35, min_lr=0.0),
    "s14,k710": R("internvideo2-s14-distill", 256, 32, 35, 5, 2e-4, 0.75, 0.1),
    "b14,k710": R("internvideo2-b14-distill", 256, 16, 20, 4, 2e-4, 0.75, 0.1),
    "l14,k710": R("internvideo2-l14-distill", 256, 16, 14, 2, 2e-4, 0.75, 0.1),
    "1b,k400": R("internvideo2-1b-k710", 256, 8, 3, 0, 1e-5, 0.9, 0.3),
    "1b,k400,f16": R("internvideo2-1b-k710", 256, 8, 3, 0, 1e-5, 0.9, 0.3),
    "1b,k600": R("internvideo2-1b-k710", 256, 8, 3, 0, 1e-5, 0.9, 0.3),
    "1b,k600,f16": R("internvideo2-1b-k710", 256, 8, 3, 0, 1e-5, 0.9, 0.3),
    "1b,k700": R("internvideo2-1b-k710", 256, 8, 3, 0, 1e-5, 0.9, 0.3),
    "1b,k700,f16": R("internvideo2-1b-k710", 256, 8, 3, 0, 1e-5, 0.9, 0.3),
    "6b,k400": R("internvideo2-6b-k710", 256, 4, 1, 0, 1e-5, 0.915, 0.35),
    "6b,k400,f16": R("internvideo2-6b-k710", 128, 2, 1, 0, 1e-5, 0.915, 0.35),
    "6b,k600": R("internvideo2-6b-k710", 256, 4, 1, 0, 1e-5, 0.915, 0.35),
    "6b,k600,f16": R("internvideo2-6b-k710", 128, 2, 1, 0, 1e-5, 0.915, 0.35),
    "6b,k700": R("internvideo2-6b-k710", 256, 4, 1, 0, 1e-5, 0.915, 0.35),
    "6b,k700,f16": R("internvideo2-6b-k710", 128, 2, 1, 0, 1e-5, 0.915, 0.35),
    "s14,k400": R("internvideo2-s14-k710", 1024, 32, 5, 1, 2e-5, 0.75, 0.1),
    "s14,k600": R("internvideo2-s14-k710", 1024, 32, 5, 1, 2e-5, 0.75, 0.1),
    "s14,k700": R("internvideo2-s14-k710", 1024, 32, 5, 1, 2e-5, 0.75, 0.1),
    "b14,k400": R("internvideo2-b14-k710", 1024, 32, 5, 1, 2e-5, 0.75, 0.1),
    "b14,k600": R("internvideo2-b14-k710", 1024, 32, 5, 1, 2e-5, 0.75, 0.1),
    "b14,k700": R("internvideo2-b14-k710", 1024, 32, 5, 1, 2e-5, 0.75, 0.1),
    "l14,k400": R("internvideo2-l14-k710", 1024, 32, 5, 1, 2e-5, 0.75, 0.1),
    "l14,k600": R("internvideo2-l14-k710", 1024, 32, 5, 1, 2e-5, 0.75, 0.1),
    "l14,k700": R("internvideo2-l14-k710", 1024, 32, 5, 1, 2e-5, 0.75, 0.1),
    "1b,mit": R("internvideo2-1b-k400-f8", 256, 8, 15, 5, 5e-5, 0.9, 0.3, num_sample=1),
    "6b,mit": R(
        "internvideo2-6b-k400-f8", 256, 4, 8, 2, 2.5e-5, 0.915, 0.35, min_lr=0.0, num_sample=1
    ),
    "6b,mit,336": R(
        "internvideo2-6b-mit", 256, 4, 2, 0, 1e-5, 0.915, 0.4, 0.0, weight_decay=0.1, num_sample=1
    ),
    "1b,ssv1": R("internvideo2-1b-pretrain", 256, 8, 9, 3, 1e-4, 0.915, 0.3, segments=2),
    "6b,ssv1": R("internvideo2-6b-pretrain", 256, 4, 7, 2, 7.5e-5, 0.915, 0.4, min_lr=0.0),
    "1b,ssv2": R("internvideo2-1b-pretrain", 256, 8, 8, 3, 1e-4, 0.915, 0.3, segments=2),
    "6b,ssv2": R(
        "internvideo2-6b-pretrain", 256, 4, 6, 2, 7.5e-5, 0.915, 0.4, min_lr=0.0, segments=5
    ),
    "s14,ssv2": R("internvideo2-s14-distill", 256, 32, 30, 5, 5e-4, 0.75, 0.1),
    "b14,ssv2": R("internvideo2-b14-distill", 512, 32, 30, 5, 5e-4, 0.75, 0.1),
    "l14,ssv2": R("internvideo2-l14-distill", 256, 16, 10, 2, 2e-4, 0.85, 0.2, segments=2),
}


def get_config(name: str = "1b,k400") -> ConfigDict:
    """The config of a recipe.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    known = RECIPES | dict.fromkeys(custom.names())
    recipe: Recipe | None = common.choose(known, name, "stage1/finetune.py")
    size, dataset_name, variant = (*name.split(","), "")[:3]
    if recipe is None:
        return custom.finetune(size)
    dataset = common.DATASETS[dataset_name]
    assert dataset.num_classes is not None
    frames = 16 if variant == "f16" else 8
    image_size = 336 if variant == "336" else 224
    encoder = common.encoder(
        size, num_frames=frames, image_size=image_size, drop_path_rate=recipe.drop_path
    )
    stage = ClassifyConfig(
        model=VideoClassifierConfig(encoder, dataset.num_classes),
        mix_group=recipe.per_gpu * recipe.num_sample,
        starts_from=recipe.start,
        # A Kinetics head knows other classes; of K710's, K400, K600 and K700 take their own rows.
        new_head=dataset_name == "mit" and "k400" in recipe.start,
    )
    return common.classification_run(
        recipe,
        stage,
        dataset,
        num_sample=recipe.num_sample,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
    )
