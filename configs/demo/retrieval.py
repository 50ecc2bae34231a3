"""What is measured of the demo's stage-2 model, on clips that no training has seen.

`configs/eval/retrieval.py:demo[,NAME[,SIZE]]` with SIZE full or fast and NAME one of
  clips_1, clips_2      texts look for clips of distinct contents, half of them held out in training
  crossed               the same where every look comes with all motions
  sounds                texts look for the sounds of clips_1; all that sound alike are right
  both                  texts look for clips_1 with their sounds
  voices_seen           texts look for clips that come in threes, which differ in the voice alone
  voices_heard          the same with the sounds
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from internvideo_jax.configs.demo import common
from internvideo_jax.configs.stage1.common import as_config, choose
from internvideo_jax.data.synthetic.world import RetrievalList, find_world
from internvideo_jax.evaluation.retrieval.options import RetrievalData, RetrievalOptions
from internvideo_jax.models.dual_encoder import Medium


class Measurement(NamedTuple):
    """A measurement.

    Attributes:
      clips: the world's list.
      medium: what texts look for.
    """

    clips: RetrievalList
    medium: Medium


MEASUREMENTS = {
    "clips_1": Measurement("test_1", "video"),
    "clips_2": Measurement("test_2", "video"),
    "crossed": Measurement("crossed", "video"),
    "sounds": Measurement("sounds", "audio"),
    "both": Measurement("test_1", "audio_video"),
    "voices_seen": Measurement("voices", "video"),
    "voices_heard": Measurement("voices", "audio_video"),
}
# Candidates of each query that the fusion layer reads; it has learnt to match clips alone.
_RERANK = 16


def get_config(name: str = "clips_1") -> ConfigDict:
    """The config of a measurement called `NAME[,SIZE]`, on the demo's clips in `common.home()`.

    Raises:
      ValueError: there is no such measurement or size; lists all.
    """
    name, _, of_size = name.partition(",")
    measurement: Measurement = choose(MEASUREMENTS, name, "demo/retrieval.py")
    size: common.Size = choose(common.SIZES, of_size or "full", "demo/retrieval.py")
    config = ConfigDict()
    config.retrieval = as_config(
        RetrievalOptions(
            medium=measurement.medium,
            rerank=_RERANK if measurement.medium == "video" else 0,
            shared_captions=measurement.medium == "audio",
        )
    )
    clips = find_world(size.world, common.home()).retrieval_list(measurement.clips)
    config.eval_data = as_config(RetrievalData(annotations=str(clips)))
    return config
