"""A small encoder and a classifier around it."""

import pytest

from internvideo_jax.models import VideoClassifierConfig
from tests.small_models import CLIP_ENCODER, clip_model


@pytest.fixture(scope="session")
def encoder():
    return clip_model(CLIP_ENCODER)


@pytest.fixture(scope="session")
def classifier():
    return clip_model(VideoClassifierConfig(CLIP_ENCODER, num_classes=3))
