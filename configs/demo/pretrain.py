"""The demo's stage 1: a masked student follows the image and the video teacher.

`configs/demo/pretrain.py[:SIZE]` with SIZE full or fast. The teachers' features come from
`data.features_dir` (`AlignmentStage.features` says which), where `internvideo-jax demo` puts them.
"""

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import common
from internvideo_jax.configs.stage1.common import choose, run_config
from internvideo_jax.models import (
    Stage1StudentConfig,
    TeacherConfig,
    VideoMAEConfig,
    VideoMAETeacherConfig,
)
from internvideo_jax.training.stages.pretrain import PretrainConfig


def get_config(name: str = "full") -> ConfigDict:
    """The config of a size.

    Raises:
      ValueError: there is no such size; lists all.
    """
    size: common.Size = choose(common.SIZES, name, "demo/pretrain.py")
    encoder = common.encoder(size)
    layers = common.aligned_layers(size)
    stage = PretrainConfig(
        student=Stage1StudentConfig(
            encoder,
            clip_layers=layers,
            mae_layers=layers,
            clip_target_dim=encoder.width,
            clip_final_dim=encoder.pooled_dim,
            mae_target_dim=encoder.width,
        ),
        clip_teacher=TeacherConfig(common.image_encoder(size), layers, per_frame=True),
        # Only the shape of the cached features: they are those of the demo's video teacher.
        mae_teacher=VideoMAETeacherConfig(
            VideoMAEConfig(
                width=encoder.width,
                depth=encoder.depth,
                num_heads=encoder.num_heads,
                mlp_dim=encoder.mlp_dim,
                patch_size=encoder.patch_size,
                tubelet_size=encoder.tubelet_size,
                image_size=encoder.image_size,
                num_frames=encoder.num_frames,
            ),
            layers,
        ),
        teachers="cached",
    )
    train = common.train(size.stage1_steps, size.batch_size, seed=3)
    return run_config("pretrain", stage, train, common.data(None), None)
