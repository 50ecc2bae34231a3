"""Sound as filterbanks."""

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.decode.audio import SoundError
from internvideo_jax.data.fields.field import Columns, Field, LazyClip
from internvideo_jax.data.transforms.filterbank import audio_input

# Filterbanks step by a hundredth of a second.
_HOPS_PER_SECOND = 100


class AudioField(Field):
    """`audio`, float32 `[b, F, M]`: the normalised filterbank of a part of the clip's sound.

    A longer sound is cut: at random in training, evenly over the segments in evaluation. A shorter
    one ends in zeros, the mean level. With `missing_audio="zeros"`, clips without sound are zeros,
    and `has_audio`, bool `[b]`, tells them apart.

    Source: upstream's `InternVideo2/multi_modality/dataset` (which cuts at random in tests as well,
    and pads the waveform of sound files, not their filterbank).
    """

    name = "audio"

    def __init__(self, config: DataConfig):
        self._config = config

    def train(self, clip: LazyClip, rng: np.random.Generator) -> Columns:
        return self._columns(clip, rng.random())

    def evaluate(self, clip: LazyClip) -> Columns:
        segments, crops = self._config.segments, self._config.crops
        parts = [self._columns(clip, (s + 0.5) / segments) for s in range(segments)]
        return {
            name: np.repeat(np.concatenate([part[name] for part in parts]), crops, axis=0)
            for name in parts[0]
        }

    def blank(self) -> Columns:
        audio = self._config.audio
        return self._named(np.zeros((1, audio.num_frames, audio.num_mels), np.float32), False)

    def _columns(self, clip: LazyClip, place: float) -> Columns:
        """Of the part that begins at `place`, from 0 to 1, of where it may."""
        audio = self._config.audio
        try:
            sound = clip.sound(audio.sample_rate)
        except SoundError:
            if self._config.missing_audio == "zeros":
                return self.blank()
            raise
        # Of 998 frames, 10 s: a frame is 2.5 steps long, and upstream cuts whole seconds.
        length = audio.sample_rate * (audio.num_frames + 2) // _HOPS_PER_SECOND
        start = int(place * (max(len(sound) - length, 0) + 1))
        return self._named(audio_input(sound[start : start + length], audio)[None], True)

    def _named(self, audio: np.ndarray, has_audio: bool) -> Columns:
        if self._config.missing_audio == "error":
            return {"audio": audio}
        return {"audio": audio, "has_audio": np.full(1, has_audio)}
