"""Zero-shot classification: clips compared with the names of their classes.

`configs/eval/zero_shot.py:BENCHMARK`, of those in `BENCHMARKS` below; `custom` is for lists of your
own. Set where the list and the videos are, and the names of the classes where labels are numbers:

    --config.eval_data.annotations=FILE --config.eval_data.root=DIR --config.eval_data.classes=FILE

`configs/eval/zero_shot.py:demo[,NAME[,SIZE]]` is a measurement of the model that
`internvideo-jax demo` has trained, on its clips (`configs/demo/zero_shot.py`).

Source: `scripts/evaluation/clip/zero_shot` of upstream `InternVideo2/multi_modality`: 8 frames, one
view, 16 prompts. Charades is multiple choice there, among the names of all actions as they are;
`configs/eval/multiple_choice.py:charades` reads upstream's list, this one what Charades publishes.
ActivityNet and Something-Something V2 have no script of InternVideo2-CLIP; theirs are like that of
Kinetics.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import zero_shot as demo
from internvideo_jax.configs.stage1 import common
from internvideo_jax.evaluation.zero_shot_options import ZeroShotData, ZeroShotOptions


class Benchmark(NamedTuple):
    """How a benchmark is measured.

    Attributes:
      num_frames: of a clip; None is as many as the model was made for.
      prompts: what `ZeroShotOptions.prompts` is.
      split_names: whether names of classes are published in one piece, as ApplyEyeMakeup.
    """

    num_frames: int | None
    prompts: str
    split_names: bool = False


BENCHMARKS = {
    "k400": Benchmark(8, "k400"),
    "k600": Benchmark(8, "k600"),
    "k700": Benchmark(8, "k700"),
    "ucf101": Benchmark(8, "ucf101", split_names=True),
    "hmdb51": Benchmark(8, "hmdb51", split_names=True),
    "mit": Benchmark(8, "mit", split_names=True),
    "activitynet": Benchmark(8, "activitynet"),
    "ssv2": Benchmark(8, "ssv2"),
    "charades": Benchmark(8, "{}"),
    "custom": Benchmark(None, "{}"),
}


def get_config(name: str = "custom") -> ConfigDict:
    """The config of a benchmark.

    Raises:
      ValueError: there is no such benchmark; lists all.
    """
    kind, _, measurement = name.partition(",")
    if kind == "demo":
        return demo.get_config(measurement or "motions")
    benchmark: Benchmark = common.choose(BENCHMARKS, name, "eval/zero_shot.py", others=("demo",))
    config = ConfigDict()
    config.zero_shot = common.as_config(
        ZeroShotOptions(prompts=benchmark.prompts, split_names=benchmark.split_names)
    )
    config.eval_data = common.as_config(ZeroShotData(num_frames=benchmark.num_frames))
    return config
