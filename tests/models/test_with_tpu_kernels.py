"""What holds of the models holds with the attention kernels for TPUs, interpreted, too.

Here a part runs. All of it: `INTERNVIDEO_ATTENTION=pallas_tpu pytest tests/goldens tests/models`.
"""

import os
import subprocess
import sys

import pytest

from tests.processes import ROOT

# Towers of videos, images, texts and sounds: those whose attention the kernels serve, forward and
# backward, and those that get another implementation since they hide keys or add a bias.
PART = (
    "teacher or distill or cat_proj or text_llama or bert or beats or video_vit or stage1 or clip"
)


@pytest.mark.slow
def test_goldens_and_models_with_the_tpu_kernels():
    command = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "-k", PART]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *command, "tests/goldens", "tests/models"],
        env=os.environ | {"INTERNVIDEO_ATTENTION": "pallas_tpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
