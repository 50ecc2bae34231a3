"""The demo's stage 2: its video tower of stage 1 learns what texts and sounds say of clips.

`configs/demo/stage2.py[:SIZE]` with SIZE full or fast; `configs/stage2/pretrain.py:demo` is the
full one. `internvideo-jax demo` makes the clips and the vocabulary, and sets
`stage.initial_vision`.
"""

import dataclasses

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import common
from internvideo_jax.configs.stage1.common import choose, run_config
from internvideo_jax.models import DistillStudentConfig
from internvideo_jax.models.beats import BeatsConfig, deep_norm_scale
from internvideo_jax.models.bert import BertConfig
from internvideo_jax.models.stage2 import Stage2Config
from internvideo_jax.preprocessing import AudioPreprocessing
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.stages.cross_modal_config import CrossModalConfig, LossWeights

# Of the world's captions: all words and BERT's special ones; the longest one in words, and two.
NUM_WORDS, TEXT_LENGTH = 39, 17
# Sounds of 1.28 s.
SOUND = AudioPreprocessing(num_frames=128)


def get_config(name: str = "full") -> ConfigDict:
    """The config of a size.

    Raises:
      ValueError: there is no such size; lists all.
    """
    size: common.Size = choose(common.SIZES, name, "demo/stage2.py")
    everything = MaskConfig("random", 0.0)
    stage = CrossModalConfig(
        _model(size),
        weights=LossWeights(vtc=1.0, avtc=1.0, atc=1.0, vtm=1.0, mlm=1.0),
        video_mask=everything,
        image_mask=everything,
        max_text_length=TEXT_LENGTH,
        match_group=size.stage2.batch_size,
        # As in stage 1.
        fan_in=("vision", "text", "audio"),
    )
    data = dataclasses.replace(
        common.data(None),
        media="audio_video",
        resize="bicubic_square",
        max_text_length=TEXT_LENGTH,
        audio=SOUND,
    )
    train = common.train(size.stage2.steps, size.stage2.batch_size, seed=4)
    optimizer = dataclasses.replace(
        train.optimizer,
        lr=size.stage2.lr,
        min_lr=0.01 * size.stage2.lr,
        weight_decay=size.stage2.weight_decay,
    )
    train = dataclasses.replace(train, optimizer=optimizer)
    return run_config("cross_modal", stage, train, data, None)


def _model(size: common.Size) -> Stage2Config:
    own = size.stage2
    return Stage2Config(
        DistillStudentConfig(common.encoder(size), (), clip_final_dim=0),
        BertConfig(
            width=own.text_width,
            depth=own.text_depth + own.fusion_depth,
            num_heads=4,
            mlp_dim=4 * own.text_width,
            vocab_size=NUM_WORDS,
            max_length=TEXT_LENGTH,
            fusion_layer=own.text_depth,
            cross_width=own.embed_dim,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
        ),
        BeatsConfig(
            width=own.audio_width,
            depth=own.audio_depth,
            num_heads=2,
            mlp_dim=4 * own.audio_width,
            num_frames=SOUND.num_frames,
            patch_width=own.audio_width,
            conv_size=15,
            conv_groups=4,
            num_buckets=32,
            max_distance=64,
            residual_scale=deep_norm_scale(own.audio_depth),
        ),
        embed_dim=own.embed_dim,
        media_width=own.embed_dim,
        match_heads=("video",),
    )
