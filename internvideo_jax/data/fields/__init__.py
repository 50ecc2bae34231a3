"""Fields: what batches are made of, each a transform from clips to columns, registered by name."""

from collections.abc import Sequence

from internvideo_jax.config import nearest_name
from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.fields.audio import AudioField
from internvideo_jax.data.fields.captions import CaptionsField
from internvideo_jax.data.fields.clip_id import ClipIdField
from internvideo_jax.data.fields.features import PREFIX, FeaturesField
from internvideo_jax.data.fields.field import Field
from internvideo_jax.data.fields.label import LabelField
from internvideo_jax.data.fields.text import NAMED, TextField
from internvideo_jax.data.fields.video import ImageField, VideoField

FIELDS: dict[str, type[Field]] = {
    "audio": AudioField,
    "captions": CaptionsField,
    "clip_id": ClipIdField,
    "image": ImageField,
    "label": LabelField,
    "text": TextField,
    "video": VideoField,
}


def make_fields(names: Sequence[str], config: DataConfig, num_clips: int) -> list[Field]:
    """The fields of a batch.

    Args:
      names: of `FIELDS`, or beginning with `targets/` for features of `config.features_dir`, or
        with `text/` for captions of a name.
      config: what becomes of the clips.
      num_clips: that the config has.

    Raises:
      ValueError: no such field, or the config lacks what it needs.
    """
    fields: list[Field] = []
    for name in names:
        if name.startswith(PREFIX):
            fields.append(FeaturesField(name, config, num_clips))
        elif name.startswith(NAMED):
            fields.append(TextField(config, name))
        elif name in FIELDS:
            fields.append(FIELDS[name](config))
        else:
            raise ValueError(
                f"expected fields of {', '.join(FIELDS)}, {NAMED}NAME or {PREFIX}NAME, found"
                f" {name!r}{nearest_name(name, FIELDS)}"
            )
    return fields
