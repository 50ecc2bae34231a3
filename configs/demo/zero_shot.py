"""Zero-shot classification of the demo's test clips by its stage-2 model.

`configs/eval/zero_shot.py:demo[,NAME[,SIZE]]` with SIZE full or fast and NAME one of
  motions    8 motions, in captions that have all looks
  looks      48 looks (colour, shape and size), in captions that have all motions

No training has seen the clips; half of them show combinations that it never shows. The texts are
made of the grammar of the training's captions, which the model has read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import common
from internvideo_jax.configs.stage1.common import as_config, choose
from internvideo_jax.data.synthetic import prompts
from internvideo_jax.data.synthetic.world import World, find_world
from internvideo_jax.evaluation.zero_shot_options import ZeroShotData, ZeroShotOptions


class Measurement(NamedTuple):
    """A measurement.

    Attributes:
      names: of the classes, by the numbers of the labels.
      templates: of the texts that name them.
      clips: the world's list.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    clips: Callable[[World], Path]


MEASUREMENTS = {
    "motions": Measurement(
        prompts.motion_names(),
        prompts.motion_templates(),
        lambda world: world.annotations("test"),
    ),
    "looks": Measurement(
        prompts.look_names(),
        prompts.look_templates(),
        lambda world: world.look_annotations("test"),
    ),
}


def get_config(name: str = "motions") -> ConfigDict:
    """The config of a measurement called `NAME[,SIZE]`, on the demo's clips in `common.home()`.

    Raises:
      ValueError: there is no such measurement or size; lists all.
    """
    name, _, of_size = name.partition(",")
    measurement: Measurement = choose(MEASUREMENTS, name, "demo/zero_shot.py")
    size: common.Size = choose(common.SIZES, of_size or "full", "demo/zero_shot.py")
    config = ConfigDict()
    config.zero_shot = as_config(ZeroShotOptions(prompts=measurement.templates))
    clips = measurement.clips(find_world(size.world, common.home()))
    config.eval_data = as_config(ZeroShotData(annotations=str(clips), classes=measurement.names))
    return config
