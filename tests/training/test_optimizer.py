import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from internvideo_jax.training.optimizer import (
    adamw,
    layer_ids,
    layer_scales,
    weight_decay_mask,
)

DEPTH = 3


def parameters() -> dict:
    """A classifier's tree in small, filled with ones."""
    ones = jnp.ones
    return {
        "encoder": {
            "cls_token": ones((1, 1, 4)),
            "pos_embed": ones((1, 5, 4)),
            "patch_embed": {"kernel": ones((1, 2, 2, 3, 4)), "bias": ones(4)},
            "blocks": {
                "norm1": {"scale": ones((DEPTH, 4))},
                "attn": {
                    "qkv": {"kernel": ones((DEPTH, 4, 3, 2, 2)), "bias": ones((DEPTH, 3, 2, 2))},
                    "q_norm": {"scale": ones((DEPTH, 2, 2))},
                },
                "ls1": {"gamma": ones((DEPTH, 4))},
            },
            "pooler": {"q": {"kernel": ones((4, 2, 2)), "bias": ones((2, 2))}},
        },
        "clip_pos_embed": ones((1, 5, 4)),
        "mae_pos_embed_temporal": ones((1, 2, 4)),
        "head": {"kernel": ones((4, 2)), "bias": ones(2)},
    }


def flat(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_only_kernels_decay_whatever_their_rank() -> None:
    decayed = {name for name, decays in flat(weight_decay_mask(parameters())).items() if decays}
    assert decayed == {
        "encoder/patch_embed/kernel",
        "encoder/blocks/attn/qkv/kernel",
        "encoder/pooler/q/kernel",
        "head/kernel",
    }


def test_a_parameter_without_a_rule_is_named() -> None:
    with pytest.raises(ValueError, match=r"head/temperature.*training/optimizer\.py"):
        weight_decay_mask({"head": {"temperature": jnp.ones(()), "bias": jnp.ones(2)}})


def test_layers_are_numbered_from_input_to_head() -> None:
    ids = flat(layer_ids(parameters()))
    for name in ("cls_token", "pos_embed", "patch_embed/kernel", "patch_embed/bias"):
        assert ids[f"encoder/{name}"] == 0
    np.testing.assert_array_equal(ids["encoder/blocks/attn/qkv/kernel"].ravel(), [1, 2, 3])
    assert ids["encoder/blocks/attn/qkv/kernel"].shape == (DEPTH, 1, 1, 1, 1)
    for name in (
        "encoder/pooler/q/kernel",
        "head/bias",
        "clip_pos_embed",
        "mae_pos_embed_temporal",
    ):
        assert ids[name] == DEPTH + 1


def test_separable_position_tables_are_left_at_the_full_rate_as_upstream() -> None:
    params = {"blocks": {"bias": jnp.ones((2, 3))}, "pos_embed_spatial": jnp.ones((1, 4, 3))}
    assert layer_scales(params, 0.5)["pos_embed_spatial"] == 1


def test_scales_are_powers_of_the_decay() -> None:
    scales = flat(layer_scales(parameters(), 0.5))
    assert scales["encoder/pos_embed"] == 0.5**4
    np.testing.assert_array_equal(scales["encoder/blocks/ls1/gamma"].ravel(), [1 / 8, 1 / 4, 1 / 2])
    assert scales["head/kernel"] == 1


def test_layer_decay_needs_one_stack_of_layers() -> None:
    with pytest.raises(ValueError, match="found none"):
        layer_ids({"head": {"bias": jnp.ones(2)}})
    uneven = {"blocks": {"a": {"bias": jnp.ones((2, 3))}, "b": {"bias": jnp.ones((3, 3))}}}
    with pytest.raises(ValueError, match=r"found \[2, 3\]"):
        layer_ids(uneven)


def test_one_step_is_the_decoupled_formula() -> None:
    params = parameters()
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    optimizer = adamw(lambda step: 0.1 / (1 + step), eps=1e-3, weight_decay=0.2, layer_decay=0.5)
    state = jax.jit(optimizer.init)(params)
    expected = {name: np.asarray(leaf) for name, leaf in flat(params).items()}
    decays, scales = flat(weight_decay_mask(params)), flat(layer_scales(params, 0.5))
    for step in range(2):
        updates, state = jax.jit(optimizer.update)(gradients, state, params)
        params = jax.tree.map(np.add, params, updates)
        for name, leaf in expected.items():
            # A constant gradient leaves both bias-corrected moments at its own value.
            direction = 0.5 / (0.5 + 1e-3) + 0.2 * decays[name] * leaf
            expected[name] = leaf - 0.1 / (1 + step) * scales[name] * direction
        for name, leaf in flat(params).items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, err_msg=name)


def test_without_layer_decay_all_layers_step_alike() -> None:
    params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    optimizer = adamw(0.1, weight_decay=0.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.1, rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm() -> None:
    params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    # With a huge epsilon the step is the first moment itself, that is, the clipped gradient.
    optimizer = adamw(1.0, b1=0.0, eps=1e6, weight_decay=0.0, max_grad_norm=3.0)
    gradients = jax.tree.map(lambda p: 100 * p, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates) * 1e6, 3.0, rtol=1e-3)


def test_groups_are_found_through_boxes_of_logical_axes() -> None:
    def boxed(leaf: jax.Array) -> nn.LogicallyPartitioned:
        return nn.LogicallyPartitioned(leaf, names=(None,) * leaf.ndim)

    params = jax.tree.map(boxed, parameters())
    plain = jax.tree.leaves(weight_decay_mask(parameters()))
    assert jax.tree.leaves(weight_decay_mask(params)) == plain
    optimizer = adamw(0.1, layer_decay=0.5)
    updates, _ = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
