"""A small encoder and a classifier around it, with weights wide enough to tell clips apart."""

import jax
import numpy as np
import pytest

from internvideo_jax.models import (
    VideoClassifier,
    VideoClassifierConfig,
    VideoViT,
    VideoViTConfig,
    abstract_variables,
)
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.saved_model import SavedModel

ENCODER = VideoViTConfig(
    width=32,
    depth=2,
    num_heads=2,
    mlp_dim=64,
    patch_size=8,
    tubelet_size=2,
    image_size=32,
    num_frames=4,
    pooled_dim=16,
    pooler_heads=2,
)


def model_of(module, config):
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract_variables(module)
    )
    preprocessing = Preprocessing(VideoPreprocessing(image_size=32, num_frames=4))
    return SavedModel(module, variables, config, preprocessing, {})


@pytest.fixture(scope="session")
def encoder():
    return model_of(VideoViT(ENCODER), ENCODER)


@pytest.fixture(scope="session")
def classifier():
    config = VideoClassifierConfig(ENCODER, num_classes=3)
    return model_of(VideoClassifier(config), config)
