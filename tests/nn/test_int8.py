import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from internvideo_jax.models import abstract_variables
from internvideo_jax.models.video_vit import VideoViT, VideoViTConfig
from internvideo_jax.nn import int8


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_the_largest_entry_of_each_output_is_exact_and_all_are_within_half_a_level(dtype):
    kernel = np.random.default_rng(0).standard_normal((2, 4, 3, 5)).astype(dtype)
    kernel[:, :, :, 1] = 0
    values, scale = int8.quantize(kernel, (-3, -2))
    assert values.dtype == np.int8
    assert scale.shape == (2, 5)
    assert np.abs(values).max(axis=(1, 2)).tolist() == [[127, 0, 127, 127, 127]] * 2
    found = int8.dequantize(values, scale, (-3, -2))
    error = np.abs(found - kernel.astype(np.float32))
    assert (error <= scale[:, None, None] * 0.5001).all()
    on_device = int8.quantize(jnp.asarray(kernel), (-3, -2))
    jax.tree.map(np.testing.assert_array_equal, on_device, (values, scale))


def test_a_stack_widens_one_layer_at_a_time():
    """The program's intermediate values are far fewer than the weights of all layers."""
    config = VideoViTConfig(
        width=128, depth=16, num_heads=2, mlp_dim=512, patch_size=4, image_size=8, num_frames=1
    )
    module = VideoViT(config)
    flat = traverse_util.flatten_dict(abstract_variables(module, boxed=True), sep="/")
    shapes = nn.unbox(jax.eval_shape(int8.quantize_kernels, flat))
    video = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    variables = traverse_util.unflatten_dict(shapes, sep="/")
    memory = jax.jit(module.apply).lower(variables, video).compile().memory_analysis()
    kernels = sum(4 * leaf.size for leaf in shapes.values() if leaf.dtype == jnp.int8)
    assert memory.temp_size_in_bytes < kernels / 4


def test_all_kernels_of_linear_layers_are_quantised():
    config = VideoViTConfig(
        width=16, depth=2, num_heads=2, mlp_dim=32, patch_size=4, image_size=8, num_frames=1
    )
    boxed = abstract_variables(VideoViT(config), boxed=True)
    flat = traverse_util.flatten_dict(boxed, sep="/")
    packed = jax.eval_shape(int8.quantize_kernels, flat)
    kernels = {name: leaf.value for name, leaf in packed.items() if name.endswith("/kernel")}
    left = [name for name, kernel in kernels.items() if kernel.dtype != jnp.int8]
    assert left == ["params/patch_embed/kernel"]
    scale = packed["params/blocks/attn/proj/kernel_scale"]
    assert (scale.value.shape, scale.names) == ((2, 16), ("layers", "embed"))


def test_products_of_int8_values_are_near_and_exact_where_all_values_are_levels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32) * np.float32([[1], [0], [30]])[..., None]
    kernel = rng.normal(size=(4, 5, 6, 7)).astype(np.float32)
    values, scale = int8.quantize(kernel, (0, 1))
    wanted = np.einsum("btij,ijkl->btkl", x, kernel)
    found = int8.product(jnp.asarray(x), jnp.asarray(values), jnp.asarray(scale))
    # Each token has a scale of its own.
    size = np.abs(wanted).max((2, 3), keepdims=True)
    assert (np.abs(found - wanted) <= 0.03 * size).all()
    levels = rng.integers(-127, 128, x.shape).astype(np.float32)
    levels[..., 0, 0] = 127
    exact = np.einsum("btij,ijkl->btkl", levels, values.astype(np.float32)) * scale
    for input_scale in (None, jnp.float32(0.5)):
        factor = 1 if input_scale is None else 0.5
        given = jnp.asarray(levels * factor)
        found = int8.product(given, jnp.asarray(values), jnp.asarray(scale), input_scale)
        np.testing.assert_allclose(found, exact * factor, rtol=1e-5, atol=1e-3)
    # What is larger than the scale allows is cut.
    cut = int8.product(given * 3, jnp.asarray(values), jnp.asarray(scale), jnp.float32(0.5))
    full = np.einsum("btij,ijkl->btkl", np.clip(levels * 3, -127, 127), values.astype(np.float32))
    np.testing.assert_allclose(cut, full * scale / 2, rtol=1e-5, atol=1e-3)
