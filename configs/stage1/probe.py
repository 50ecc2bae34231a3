"""Attentive and linear probing: the encoder stays frozen.

`configs/stage1/probe.py:SIZE,KIND_DATASET[,stage2]`, for example `1b,ap_k710`, `6b,lp_ssv2,stage2`;
`RECIPES` below holds all. KIND `ap` trains the attention pooler and the head, on SSv2 with an extra
MLP between them; `lp` trains the head, on SSv2 one that reads class token, averages over each frame
and the pooled feature. Clips have 16 frames of 224x224 pixels. `SIZE,custom` is for classes of your
own (`custom.py`, docs/your_classes.md). Set the weights to start from and the data:

    --config.stage.initial=DIR --config.data.annotations=FILE --config.data.root=DIR
    --config.eval_data.annotations=FILE --config.eval_data.root=DIR

Where a recipe starts from `...+stage2`, convert the pre-trained checkpoint and the stage-2 one of
that size together: `internvideo-jax convert PRETRAIN STAGE2 --output=DIR`.

Source: `scripts/finetuning/{attentive_probing,linear_probing}/` and the ActivityNet and HACS
scripts of `full_tuning/` of upstream `InternVideo2/single_modality`. What its scripts got wrong is
listed in docs/stage1.md.
"""

import dataclasses
from typing import Any, Literal

from ml_collections import ConfigDict

from internvideo_jax.configs.stage1 import common, custom
from internvideo_jax.models import VideoClassifierConfig
from internvideo_jax.training.stages.classify import ClassifyConfig, ProbeConfig

NUM_FRAMES = 16


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A line of the table below.

    Attributes:
      start: the weights to start from: a name of `internvideo-jax convert --list`, with `+stage2`
        if stage-2 weights replace its encoder, or another recipe of this file.
      batch_size: clips of an optimizer step.
      per_gpu: clips of one GPU in upstream's run, which share a draw of mixup.
      epochs: passes over the data.
      warmup: epochs of warm-up among them.
      lr: peak learning rate per 256 clips.
      min_lr: final learning rate per 256 clips.
      head: "linear", "attentive" or "concat", see `models.VideoClassifierConfig`.
      dropout: before the last layer.
      segments: temporal views in evaluation.
      crops: spatial views in evaluation.
      rand_augment: RandAugment of the training clips.
    """

    start: str
    batch_size: int
    per_gpu: int
    epochs: int
    warmup: int
    lr: float
    min_lr: float = 0.0
    head: Literal["linear", "attentive", "concat"] = "linear"
    dropout: float = 0.0
    segments: int = 1
    crops: int = 3
    rand_augment: str = "rand-m5-n2-mstd0.25-inc1"


R = Recipe
LONG_VIDEOS: dict[str, Any] = {
    "dropout": 0.5,
    "segments": 4,
    "rand_augment": "rand-m7-n4-mstd0.5-inc1",
}
RECIPES = {
    "1b,ap_k710": R("internvideo2-1b-pretrain+stage2", 1024, 64, 25, 5, 2e-4),
    "6b,ap_k710": R("internvideo2-6b-pretrain+stage2", 1024, 32, 20, 4, 1e-4),
    "1b,ap_k400": R("probe.py:1b,ap_k710", 1024, 64, 3, 0, 1e-5),
    "1b,ap_k600": R("probe.py:1b,ap_k710", 1024, 64, 3, 0, 1e-5),
    "1b,ap_k700": R("probe.py:1b,ap_k710", 1024, 64, 3, 0, 1e-5),
    "6b,ap_k400": R("probe.py:6b,ap_k710", 1024, 64, 3, 0, 1e-5),
    "6b,ap_k600": R("probe.py:6b,ap_k710", 1024, 64, 3, 0, 1e-5),
    "6b,ap_k700": R("probe.py:6b,ap_k710", 1024, 64, 3, 0, 1e-5),
    "1b,ap_mit": R("probe.py:1b,ap_k710", 1024, 64, 35, 5, 2e-4),
    "6b,ap_mit": R("probe.py:6b,ap_k710", 2048, 64, 30, 5, 1e-4),
    "1b,ap_ssv2": R("internvideo2-1b-pretrain+stage2", 1024, 64, 25, 5, 2e-4, head="attentive"),
    "6b,ap_ssv2": R("internvideo2-6b-pretrain+stage2", 1024, 64, 20, 4, 1e-4, head="attentive"),
    "6b,ap_anet": R("internvideo2-6b-k400-f8", 1024, 64, 40, 0, 2e-4, **LONG_VIDEOS),
    "6b,ap_hacs": R("internvideo2-6b-k400-f8", 1024, 64, 40, 0, 2e-4, **LONG_VIDEOS),
    "1b,lp_k400": R("internvideo2-1b-pretrain", 1024, 64, 15, 3, 1e-3, min_lr=1e-6),
    "6b,lp_k400": R("internvideo2-6b-pretrain", 1024, 64, 9, 2, 5e-4),
    "6b,lp_k400,stage2": R("internvideo2-6b-pretrain+stage2", 1024, 64, 9, 2, 5e-4),
    "1b,lp_ssv2": R("internvideo2-1b-pretrain", 1024, 64, 25, 5, 1e-4, head="concat"),
    "6b,lp_ssv2": R("internvideo2-6b-pretrain", 1024, 64, 20, 4, 1e-4, head="concat"),
    "6b,lp_ssv2,stage2": R("internvideo2-6b-pretrain+stage2", 1024, 64, 20, 4, 1e-4, head="concat"),
    "1b,lp_ucf101": R(
        "internvideo2-1b-pretrain", 512, 64, 20, 0, 1e-3, dropout=0.5, segments=2, crops=1
    ),
    "6b,lp_ucf101": R(
        "internvideo2-6b-pretrain", 512, 64, 20, 0, 1e-3, dropout=0.5, segments=2, crops=1
    ),
    "6b,lp_ucf101,stage2": R(
        "internvideo2-6b-pretrain+stage2", 512, 64, 20, 0, 1e-3, segments=2, crops=1
    ),
    "1b,lp_hmdb51": R(
        "internvideo2-1b-pretrain", 512, 64, 20, 0, 2e-3, dropout=0.3, segments=2, crops=1
    ),
    "6b,lp_hmdb51": R(
        "internvideo2-6b-pretrain", 512, 64, 20, 0, 2e-3, dropout=0.3, segments=2, crops=1
    ),
    "6b,lp_hmdb51,stage2": R(
        "internvideo2-6b-pretrain+stage2", 512, 64, 20, 0, 2e-3, dropout=0.3, segments=2, crops=1
    ),
}


def get_config(name: str = "1b,ap_k710") -> ConfigDict:
    """The config of a recipe.

    Raises:
      ValueError: there is no such recipe; lists all.
    """
    known = RECIPES | dict.fromkeys(custom.names())
    recipe: Recipe | None = common.choose(known, name, "stage1/probe.py")
    size, run = name.split(",")[:2]
    if recipe is None:
        return custom.probe(size)
    kind, dataset_name = run.split("_")
    dataset = common.DATASETS[dataset_name]
    assert dataset.num_classes is not None
    stage = ClassifyConfig(
        model=VideoClassifierConfig(
            common.encoder(size, num_frames=NUM_FRAMES),
            dataset.num_classes,
            head=recipe.head,
            merge_method="cls_avgN_proj",
            merge_norm="ln",
            dropout_rate=recipe.dropout,
        ),
        mix_group=recipe.per_gpu,
        probe=ProbeConfig(open_block_num=0, open_clip_projector=kind == "ap"),
        starts_from=recipe.start,
        new_head=dataset_name in ("mit", "anet", "hacs"),
    )
    return common.classification_run(
        recipe,
        stage,
        dataset,
        weight_decay=0.0,
        rand_augment=recipe.rand_augment,
        crops=recipe.crops,
    )
