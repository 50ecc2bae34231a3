"""Retrieval between clips and texts, zero-shot or after fine-tuning.

`configs/eval/retrieval.py:BENCHMARK`, of those in `BENCHMARKS` below; `custom` is for lists of your
own. Set where the list and the videos are:

    --config.eval_data.annotations=FILE --config.eval_data.root=DIR

`configs/eval/retrieval.py:demo[,NAME[,SIZE]]` is a measurement of `internvideo-jax demo`, on its
clips (`configs/demo/retrieval.py`).

Source: frames, lengths of texts and seconds of `scripts/evaluation/stage2/zero_shot/1B` of upstream
`InternVideo2/multi_modality`. The 6B model was measured with 4 frames on DiDeMo:
`--config.eval_data.num_frames=4`.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import retrieval as demo
from internvideo_jax.configs.stage1 import common
from internvideo_jax.evaluation.retrieval.options import RetrievalData, RetrievalOptions


class Benchmark(NamedTuple):
    """How a benchmark is measured.

    Attributes:
      num_frames: of a clip; None is as many as the model was made for.
      max_text_length: tokens of a text of stage 2; None is the model's own limit.
      paragraphs: whether a clip's captions are one text.
      max_seconds: how much of a video is shown; None is all.
    """

    num_frames: int | None
    max_text_length: int | None
    paragraphs: bool = False
    max_seconds: float | None = None


BENCHMARKS = {
    "msrvtt": Benchmark(4, 32),
    "didemo": Benchmark(8, 64, paragraphs=True, max_seconds=30.0),
    "activitynet": Benchmark(8, 150, paragraphs=True),
    "lsmdc": Benchmark(8, 32),
    "msvd": Benchmark(4, 64),
    "vatex": Benchmark(4, 32),
    "custom": Benchmark(None, None),
}


def get_config(name: str = "custom") -> ConfigDict:
    """The config of a benchmark.

    Raises:
      ValueError: there is no such benchmark; lists all.
    """
    kind, _, measurement = name.partition(",")
    if kind == "demo":
        return demo.get_config(measurement or "clips_1")
    benchmark: Benchmark = common.choose(BENCHMARKS, name, "eval/retrieval.py", others=("demo",))
    config = ConfigDict()
    config.retrieval = common.as_config(
        RetrievalOptions(max_text_length=benchmark.max_text_length, paragraphs=benchmark.paragraphs)
    )
    config.eval_data = common.as_config(
        RetrievalData(num_frames=benchmark.num_frames, max_seconds=benchmark.max_seconds)
    )
    return config
