"""The demo's video teacher: a classifier of motions.

A self-supervised teacher of a few minutes would know less of motion than random weights do.

`configs/demo/video_teacher.py[:SIZE]` with SIZE full or fast. `internvideo-jax demo` makes the
clips.
"""

import dataclasses

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import common
from internvideo_jax.configs.stage1.common import choose, run_config
from internvideo_jax.data.synthetic.world import MOTIONS


def get_config(name: str = "full") -> ConfigDict:
    """The config of a size.

    Raises:
      ValueError: there is no such size; lists all.
    """
    size: common.Size = choose(common.SIZES, name, "demo/video_teacher.py")
    stage = common.classifier(common.encoder(size), len(MOTIONS))
    train = common.train(size.video_steps, size.batch_size // 2, seed=2)
    # Predictions of the saved model name the motions.
    stage = dataclasses.replace(stage, classes=MOTIONS)
    return run_config("classify", stage, train, common.data(len(MOTIONS)), None)
