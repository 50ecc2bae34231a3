import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.models.stage2 import MediaOutput
from internvideo_jax.models.video_vit import VideoViTConfig
from tests.small_models import ENCODER, STAGE2, noise_like

VISUAL, AUDIOVISUAL = STAGE2["visual"], STAGE2["audiovisual"]


def test_the_temperature_is_bounded_and_its_gradient_comes_back():
    module = models.build(VISUAL)

    def temperature(value):
        variables = {"params": {"temperature": value}}
        return module.apply(variables, method="bounded_temperature")

    assert temperature(jnp.float32(0.2)) == np.float32(0.2)
    assert temperature(jnp.float32(3.0)) == np.float32(0.5)
    assert temperature(jnp.float32(-1.0)) == np.float32(0.001)
    assert jax.grad(temperature)(jnp.float32(3.0)) == 1.0


def test_a_clip_and_its_sound_are_joined_sound_first():
    module = models.build(AUDIOVISUAL)
    kernel = np.arange(72.0, dtype=np.float32).reshape(12, 6)
    projection = {"kernel": kernel, "bias": np.zeros(6, np.float32)}
    variables = {"params": {"audio_video_proj": projection, "temperature": np.float32(1)}}
    video = MediaOutput(jnp.ones((1, 3, 10)), jnp.zeros((1, 6)).at[0, 0].set(1))
    audio = MediaOutput(jnp.zeros((1, 2, 10)), jnp.zeros((1, 6)))
    joined = module.apply(variables, video, audio, method="join")
    np.testing.assert_array_equal(joined.tokens[0, :, 0], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(joined.embedding[0], kernel[6])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"media_width": 9}, "cross_width 32"),
        ({"audio": AUDIOVISUAL.audio}, "media_width with an audio tower"),
        ({"match_heads": ("audio",)}, "match_heads of 'video' alone"),
    ],
)
def test_towers_that_do_not_fit_are_refused(changes, found):
    with pytest.raises(ValueError, match=found):
        dataclasses.replace(VISUAL, **changes)


def test_what_a_model_does_not_have_is_named():
    module, variables = models.build(VISUAL), {"params": {"temperature": np.float32(1)}}
    with pytest.raises(ValueError, match="audio tower"):
        module.apply(variables, np.zeros((1, 21, 8)), method="encode_audio")
    with pytest.raises(ValueError, match=r"matching head for \(video\), found 'audio'"):
        module.apply(variables, np.zeros((1, 4, 16)), "audio", method="match_logits")


def test_only_matrices_decay():
    module = models.build(AUDIOVISUAL)
    params = models.abstract_variables(module)["params"]
    decayed = jax.tree.map_with_path(
        lambda path, _: module.is_decayed("/".join(key.key for key in path)), params
    )
    assert decayed["audio_tokens"]["proj"] == {"kernel": True, "bias": False}
    assert decayed["audio"]["pos_conv"]["g"]
    tables = decayed["vision"]["clip_pos_embed"], decayed["vision"]["encoder"]["pos_embed"]
    assert not any((decayed["temperature"], *tables))


@pytest.mark.parametrize("image_positions", ["mean", "own"])
def test_an_image_has_positions_of_its_own_or_the_mean_of_all_frames(image_positions):
    config = dataclasses.replace(ENCODER, depth=1, image_positions=image_positions)
    module = models.build(config)
    params = noise_like(models.abstract_variables(module)["params"], 0)
    image = np.random.default_rng(0).normal(size=(1, 1, 8, 8, 3)).astype(np.float32)
    table = params["pos_embed"]
    own = table[:, 1:].reshape(1, 2, 4, 32).mean(1)
    own = jnp.concatenate([table[:, :1], own], axis=1)
    if image_positions == "own":
        own = params.pop("img_pos_embed")
        params_with_it = params | {"img_pos_embed": own}
    else:
        params_with_it = params
    still = models.build(dataclasses.replace(config, num_frames=1, image_positions="resized"))
    expected = jax.jit(still.apply)({"params": params | {"pos_embed": own}}, image).tokens
    actual = jax.jit(module.apply)({"params": params_with_it}, image).tokens
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_images_need_a_joint_table():
    with pytest.raises(ValueError, match="joint table"):
        VideoViTConfig(32, 1, 2, 4, position_embedding="separable", image_positions="own")
