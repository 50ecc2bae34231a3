import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.models import internvideo2_clip
from internvideo_jax.models.video_vit import VideoViTConfig
from tests.small_models import ENCODER, INTERNVIDEO2_CLIP, noise_like

LLAMA, MOBILECLIP = INTERNVIDEO2_CLIP["llama"], INTERNVIDEO2_CLIP["mobileclip"]


@pytest.mark.parametrize("name", INTERNVIDEO2_CLIP)
def test_clips_images_and_texts_are_compared(name):
    config = INTERNVIDEO2_CLIP[name]
    module = models.build(config)
    variables = noise_like(models.abstract_variables(module), 0)
    clips = np.random.default_rng(0).normal(size=(2, 2, 8, 8, 3)).astype(np.float32)
    ids = np.array([[1, 5, 29, 0, 0], [1, 4, 6, 7, 29]])

    def everything(module):
        # A text is the same with less padding; an image is a clip of one frame.
        return (
            module.encode_video(clips),
            module.encode_text(ids),
            module.encode_text(ids[:1, :3]),
            module.encode_video(clips[:, :1]),
            module(clips, ids),
        )

    apply = jax.jit(lambda v: module.apply(v, method=everything))
    video, text, short, image, cosines = apply(variables)
    size = config.text.projection_dim
    assert video.embedding.shape == text.embedding.shape == (2, size)
    assert video.tokens.shape == (2, 9, 32)
    assert text.tokens.shape == (2, 5, 16)
    units = [np.asarray(x) / np.linalg.norm(x, axis=1)[:, None] for x in (
        video.embedding, text.embedding
    )]  # fmt: skip
    np.testing.assert_allclose(cosines, units[0] @ units[1].T, rtol=1e-4, atol=1e-6)
    if name == "llama":
        np.testing.assert_allclose(short.embedding, text.embedding[:1], rtol=1e-4, atol=1e-6)
    assert image.tokens.shape == (2, 5, 32)
    tower, path = module.video_tower()
    assert (tower.config, path) == (config.vision, ("vision",))


def test_the_temperature_has_a_least_value_and_comes_back():
    module = models.build(LLAMA)

    def scale(value):
        return module.apply({"params": {"temperature": value}}, method="cosine_scale")

    assert scale(jnp.float32(0.5)) == 2
    np.testing.assert_allclose(scale(jnp.float32(-1.0)), 100, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(scale)(jnp.float32(-1.0)), -1e4, rtol=1e-5)


def test_text_towers_do_not_decay():
    module = models.build(MOBILECLIP)
    params = models.abstract_variables(module)["params"]
    decayed = jax.tree.map_with_path(
        lambda path, _: module.is_decayed("/".join(key.key for key in path)), params
    )
    assert not any(jax.tree.leaves(decayed["text"]))
    assert not decayed["temperature"]
    assert decayed["vision_align"] == {
        "norm": {"scale": False, "bias": False},
        "proj": {"kernel": True, "bias": False},
    }
    assert decayed["vision"]["pooler"]["q"] == {"kernel": True, "bias": False}
    layers = module.layer_of("vision/blocks/norm1/scale"), module.layer_of("text/projection")
    np.testing.assert_array_equal(layers[0], [1, 2])
    assert layers[1] == module.last_layer == 3


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("s14", 86_867_201),
        ("b14", 153_262_337),
        ("l14", 372_752_641),
        ("1b", 7_704_737_537),
        ("6b", 12_625_764_097),
    ],
)
def test_released_models_have_their_published_sizes(size, parameters):
    config = getattr(internvideo2_clip, f"internvideo2_clip_{size}")()
    shapes = models.abstract_variables(models.build(config))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters


def test_towers_must_have_embeddings_of_one_size():
    with pytest.raises(ValueError, match="found 7 of clips and 6 of texts"):
        dataclasses.replace(MOBILECLIP, align_dim=7)


def test_an_image_has_spatial_positions_alone_where_they_are_separable(run):
    config = dataclasses.replace(
        ENCODER, depth=1, position_embedding="separable", image_positions="spatial"
    )
    module = models.build(config)
    params = noise_like(models.abstract_variables(module)["params"], 0)
    image = np.random.default_rng(0).normal(size=(1, 1, 8, 8, 3)).astype(np.float32)
    actual = run(module, {"params": params}, image).tokens
    timeless = params | {"pos_embed_temporal": jnp.zeros_like(params["pos_embed_temporal"])}
    resized = models.build(dataclasses.replace(config, image_positions="resized"))
    expected = run(resized, {"params": timeless}, image).tokens
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)
    assert np.abs(actual - run(resized, {"params": params}, image).tokens).max() > 1e-3
    with pytest.raises(
        ValueError, match="expected a separable table for image_positions 'spatial'"
    ):
        VideoViTConfig(32, 1, 2, 4, image_positions="spatial")
