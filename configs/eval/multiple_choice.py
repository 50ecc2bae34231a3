"""Multiple choice: clips compared with candidate texts of their own.

`configs/eval/multiple_choice.py:BENCHMARK`, of those in `BENCHMARKS` below; `custom` is for lists
of your own. Set where the list and the videos are:

    --config.eval_data.annotations=FILE --config.eval_data.root=DIR

Source: `scripts/evaluation/clip/zero_shot` of upstream `InternVideo2/multi_modality`.
"""

from ml_collections import ConfigDict

from internvideo_jax.configs.stage1 import common
from internvideo_jax.evaluation.zero_shot_options import ChoiceData, ZeroShotOptions

# Frames of a clip; None is as many as the model was made for.
BENCHMARKS: dict[str, int | None] = {"ssv2": 8, "charades": 8, "custom": None}


def get_config(name: str = "custom") -> ConfigDict:
    """The config of a benchmark.

    Raises:
      ValueError: there is no such benchmark; lists all.
    """
    num_frames: int | None = common.choose(BENCHMARKS, name, "eval/multiple_choice.py")
    config = ConfigDict()
    config.multiple_choice = common.as_config(ZeroShotOptions())
    config.eval_data = common.as_config(ChoiceData(num_frames=num_frames))
    return config
