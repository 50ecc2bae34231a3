"""The family of stage-2 files: several towers, each with keys and options of its own family."""

import dataclasses
import json

import numpy as np
import pytest

from internvideo_jax.convert.engine.misfit import CheckpointMisfit
from internvideo_jax.convert.engine.plan import plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.state_dict import to_state_dict, to_tree
from internvideo_jax.convert.engine.upstream import infer_config, to_upstream
from internvideo_jax.models.beats import deep_norm_scale
from internvideo_jax.models.stage2 import internvideo2_stage2_1b, internvideo2_stage2_6b
from tests.small_models import STAGE2

AUDIOVISUAL = STAGE2["audiovisual"]
CONFIGS = {
    "visual": STAGE2["visual"],
    "audiovisual": dataclasses.replace(
        AUDIOVISUAL,
        audio=dataclasses.replace(AUDIOVISUAL.audio, residual_scale=deep_norm_scale(2)),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_read_and_written_to_the_bit(name, make_state):
    config = CONFIGS[name]
    state = make_state(config, "module.")
    stored = json.loads(json.dumps(to_upstream(config)))
    found = recognize({key: x.shape for key, x in state.items()})
    made = plan(found, infer_config(found, stored=stored))
    assert made.config == config
    written = to_state_dict(to_tree(state, made), made)
    assert written.keys() == state.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)


@pytest.mark.parametrize("config", [internvideo2_stage2_1b(), internvideo2_stage2_6b()])
def test_released_files_tell_all_but_the_drop_path(config, shapes_of):
    found = infer_config(recognize(shapes_of(config)), given={"vision.drop_path_rate": 0.25})
    encoder = dataclasses.replace(config.vision.encoder, drop_path_rate=0.25)
    vision = dataclasses.replace(config.vision, encoder=encoder)
    assert found == dataclasses.replace(config, vision=vision)


def test_a_retrieval_file_has_no_head_of_words(shapes_of):
    config = STAGE2["visual"]
    text = dataclasses.replace(config.text, mlm_head=False)
    shapes = shapes_of(dataclasses.replace(config, text=text))
    shapes = {key.replace("text_encoder.bert.", "text_encoder."): s for key, s in shapes.items()}
    found = recognize(shapes)
    assert infer_config(found, stored=to_upstream(config)).text == text


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("text_proj.weight", ()),
        ("text_proj.weight", (0, 16)),
        ("av_concat_vision_proj.0.weight", (3,)),
        ("vision_encoder.pos_embed", (48,)),
    ],
)
def test_shapes_are_looked_at_before_sizes_are_read_from_them(key, shape, shapes_of):
    config = CONFIGS["audiovisual"]
    found = recognize(shapes_of(config) | {key: shape})
    with pytest.raises(ValueError, match=key.removeprefix("vision_encoder.")):
        infer_config(found, stored=to_upstream(config))


@pytest.mark.parametrize("key", ["temp", "itm_head.weight"])
def test_temperature_and_head_must_be_there(key, shapes_of):
    config = STAGE2["visual"]
    shapes = shapes_of(config)
    del shapes[key]
    found = recognize(shapes)
    with pytest.raises(CheckpointMisfit, match=key):
        plan(found, infer_config(found, stored=to_upstream(config)))


def test_numbers_of_heads_that_nothing_tells_are_asked_for_all_at_once(shapes_of):
    with pytest.raises(ValueError, match=r"(?s)vision\.\*.*bert\.\*"):
        infer_config(recognize(shapes_of(STAGE2["visual"])))


def test_longer_clips_get_longer_tables_and_images_keep_theirs(shapes_of):
    config = STAGE2["visual"]
    found = recognize(shapes_of(config))
    target = found.family.retarget(config, {"num_frames": 4, "image_size": 12})
    made = plan(found, config, target=target)
    assert made.targets["params/vision/encoder/pos_embed"] == (1, 37, 32)
    assert made.targets["params/vision/clip_img_pos_embed"] == (1, 10, 32)
    assert set(made.adaptations) == {
        f"params/vision/{name}"
        for name in (
            *("encoder/pos_embed", "encoder/img_pos_embed"),
            *("clip_pos_embed", "clip_img_pos_embed"),
        )
    }


def test_where_clips_change_sounds_stay(shapes_of):
    config = CONFIGS["audiovisual"]
    found = recognize(shapes_of(config))
    target = found.family.retarget(config, {"num_frames": 4, "image_size": 12})
    made = plan(found, config, target=target)
    assert made.adaptations
    assert all(path.startswith("params/vision/") for path in made.adaptations)
