"""Clips by number."""

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.examples import Clips


def test_a_clip_that_cannot_be_looked_up_has_a_number():
    class Damaged:
        def __len__(self):
            return 9

        def __getitem__(self, index):
            raise ValueError("expected an undamaged record")

    assert Clips(DataConfig(), source=Damaged()).record(7).id == "clip 7"
