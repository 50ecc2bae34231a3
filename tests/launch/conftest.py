"""A small model for the commands that run one."""

import jax
import numpy as np
import pytest

from internvideo_jax import models, saved_model
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing

ENCODER = models.VideoViTConfig(
    width=16,
    depth=1,
    num_heads=2,
    mlp_dim=16,
    patch_size=16,
    tubelet_size=2,
    image_size=32,
    num_frames=4,
    pooled_dim=8,
    pooler_heads=2,
)


@pytest.fixture(scope="session")
def save_model():
    """Saves the small encoder, or a classifier around it, with random weights; returns where."""

    def save(path, num_classes=None):
        name, config = "video_vit", ENCODER
        if num_classes is not None:
            name, config = "video_classifier", models.VideoClassifierConfig(ENCODER, num_classes)
        rng = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
            models.abstract_variables(models.build(config)),
        )
        preprocessing = Preprocessing(VideoPreprocessing(image_size=32, num_frames=4))
        saved_model.save(path, name, config, preprocessing, variables, {"source": {"x": 1}})
        return path

    return save
