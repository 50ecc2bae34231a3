"""Sizes of the demo and what its runs share."""

import dataclasses
from pathlib import Path

from internvideo_jax import environment
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.synthetic.world import WorldConfig
from internvideo_jax.models import VideoClassifierConfig, VideoViTConfig, stage1
from internvideo_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from internvideo_jax.training.mixup import MixConfig
from internvideo_jax.training.stages.classify import ClassifyConfig


@dataclasses.dataclass(frozen=True)
class Stage2Size:
    """How much stage 2 does, besides what its video tower is by stage 1.

    Attributes:
      steps: of training.
      batch_size: clips of a step, among all of which negatives are drawn.
      lr: peak learning rate.
      weight_decay: of the kernels.
      text_width: token width of the text tower.
      text_depth: its layers that read texts alone.
      fusion_depth: its layers that also attend to clips and sounds.
      audio_width: token width of the audio tower.
      audio_depth: its layers.
      embed_dim: size of the embeddings that are compared, and width of what texts attend to.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    text_width: int
    text_depth: int
    fusion_depth: int
    audio_width: int
    audio_depth: int
    embed_dim: int


@dataclasses.dataclass(frozen=True)
class Size:
    """How much the demo does.

    Attributes:
      world: its clips.
      width: token width of all models.
      depth: their blocks.
      image_steps: steps of the image teacher.
      video_steps: steps of the video teacher.
      stage1_steps: steps of pre-training.
      batch_size: clips of a step of pre-training; the video teacher takes half, the image teacher
        as many single frames.
      probe_labels: labels that each probe learns from.
      probe_draws: probes, with labels of their own, over which accuracies are averaged.
      stage2: clips, sounds and texts together.
    """

    world: WorldConfig
    width: int
    depth: int
    image_steps: int
    video_steps: int
    stage1_steps: int
    batch_size: int
    probe_labels: int
    probe_draws: int
    stage2: Stage2Size


SIZES = {
    "full": Size(
        WorldConfig(train=1600, probe=400, test=400),
        width=128,
        depth=4,
        image_steps=120,
        video_steps=100,
        stage1_steps=120,
        batch_size=128,
        probe_labels=300,
        probe_draws=5,
        stage2=Stage2Size(
            steps=600,
            batch_size=64,
            lr=1e-3,
            weight_decay=0.02,
            text_width=128,
            text_depth=2,
            fusion_depth=1,
            audio_width=64,
            audio_depth=2,
            embed_dim=128,
        ),
    ),
    "fast": Size(
        WorldConfig(train=24, probe=16, test=8, crossed=1, voices=2),
        width=32,
        depth=2,
        image_steps=4,
        video_steps=4,
        stage1_steps=6,
        batch_size=8,
        probe_labels=12,
        probe_draws=2,
        stage2=Stage2Size(
            steps=6,
            batch_size=8,
            lr=1e-3,
            weight_decay=0.02,
            text_width=32,
            text_depth=1,
            fusion_depth=1,
            audio_width=32,
            audio_depth=1,
            embed_dim=32,
        ),
    ),
}


def home() -> Path:
    """Folder of the demo's models and worlds."""
    return environment.home() / "demo"


def encoder(size: Size, *, num_frames: int = 8, tubelet_size: int = 2) -> VideoViTConfig:
    """The video encoder of all three models, which differ in their frames alone.

    A tubelet of 2 frames holds a piece of motion; at 1, motion is not learnt in minutes. The
    released layer scales of 1e-5 would leave so narrow a network nearly linear.
    """
    return VideoViTConfig(
        width=size.width,
        depth=size.depth,
        num_heads=4,
        mlp_dim=4 * size.width,
        patch_size=8,
        tubelet_size=tubelet_size,
        image_size=32,
        num_frames=num_frames,
        pooled_dim=size.width,
        pooler_heads=4,
        # On CPUs its gradient costs as much as the rest of the attention.
        qk_norm=False,
        layer_scale_init=1.0,
    )


def image_encoder(size: Size) -> VideoViTConfig:
    """The image teacher's encoder."""
    return encoder(size, num_frames=1, tubelet_size=1)


def aligned_layers(size: Size) -> tuple[int, ...]:
    """The blocks of the teachers that stage 1 follows."""
    return stage1.aligned_layers(size.depth, 2)


def classifier(model_encoder: VideoViTConfig, num_classes: int) -> ClassifyConfig:
    """Training of a teacher.

    The head has a batch norm: without it, what all clips' features have in common hides what
    tells them apart, and nothing is learnt in hundreds of steps. No clips are mixed, which would
    blur their motions.
    """
    model = VideoClassifierConfig(
        model_encoder, num_classes, head="concat", merge_method="cls_avg1_proj"
    )
    plain = MixConfig(mixup_alpha=0.0, cutmix_alpha=0.0, probability=0.0, label_smoothing=0.0)
    return ClassifyConfig(model, mix=plain)


def data(num_classes: int | None, num_frames: int = 8) -> DataConfig:
    """Frames without augmentation: mirrored clips move otherwise.

    Clips are spaced evenly, as the cached features of stage 1 are; single frames are drawn.
    """
    return DataConfig(
        format="jsonl",
        num_classes=num_classes,
        sampling="sparse" if num_frames == 1 else "uniform",
        num_frames=num_frames,
        image_size=32,
        augmentation="none",
        flip=False,
    )


def train(steps: int, batch_size: int, seed: int) -> TrainConfig:
    """AdamW with a short warm-up to a learning rate of 1e-3, whatever the batch."""
    lr = 1e-3
    return TrainConfig(
        batch_size=batch_size,
        steps=steps,
        warmup_steps=steps // 10,
        seed=seed,
        optimizer=OptimizerConfig(lr=lr, min_lr=0.01 * lr, betas=(0.9, 0.98), max_grad_norm=3.0),
        checkpoint=CheckpointConfig(every_steps=max(steps // 3, 1), keep=2),
        log_every=10,
    )
