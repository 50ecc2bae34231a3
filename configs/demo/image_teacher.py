"""The demo's image teacher: a classifier of single frames by colour, shape and size.

`configs/demo/image_teacher.py[:SIZE]` with SIZE full or fast. `internvideo-jax demo` makes the
clips.
"""

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import common
from internvideo_jax.configs.stage1.common import choose, run_config
from internvideo_jax.data.synthetic.world import NUM_LOOKS


def get_config(name: str = "full") -> ConfigDict:
    """The config of a size.

    Raises:
      ValueError: there is no such size; lists all.
    """
    size: common.Size = choose(common.SIZES, name, "demo/image_teacher.py")
    stage = common.classifier(common.image_encoder(size), NUM_LOOKS)
    train = common.train(size.image_steps, size.batch_size, seed=1)
    return run_config("classify", stage, train, common.data(NUM_LOOKS, num_frames=1), None)
