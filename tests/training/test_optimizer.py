import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.training.optimizer import (
    OptimizerConfig,
    PartConfig,
    adamw,
    layer_ids,
    layer_scales,
    part_of,
)

DEPTH = 3


class Model:
    last_layer = DEPTH + 1

    def is_decayed(self, path):
        return path.endswith("kernel")

    def layer_of(self, path):
        if path.startswith("encoder/blocks"):
            return np.arange(1, DEPTH + 1)
        return 0 if path.startswith(("encoder/cls_token", "encoder/patch_embed")) else DEPTH + 1


def parameters() -> dict:
    """A classifier's tree in small, filled with ones."""
    ones = jnp.ones
    return {
        "encoder": {
            "cls_token": ones((1, 1, 4)),
            "patch_embed": {"kernel": ones((1, 2, 2, 3, 4)), "bias": ones(4)},
            "blocks": {
                "attn": {
                    "qkv": {"kernel": ones((DEPTH, 4, 3, 2, 2)), "bias": ones((DEPTH, 3, 2, 2))},
                },
                "ls1": {"gamma": ones((DEPTH, 4))},
            },
        },
        "head": {"kernel": ones((4, 2)), "bias": ones(2)},
    }


def flat(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_layers_broadcast_against_their_parameters() -> None:
    ids = flat(layer_ids(parameters(), Model()))
    np.testing.assert_array_equal(ids["encoder/blocks/attn/qkv/kernel"].ravel(), [1, 2, 3])
    assert ids["encoder/blocks/attn/qkv/kernel"].shape == (DEPTH, 1, 1, 1, 1)
    assert (ids["encoder/cls_token"], ids["head/bias"]) == (0, DEPTH + 1)


def test_what_is_not_trained_does_not_change_the_rates_of_the_rest() -> None:
    params = parameters()
    scales = layer_scales(params, Model(), 0.5)
    del params["head"]
    some = layer_scales(params, Model(), 0.5)
    jax.tree.map(np.testing.assert_array_equal, some["encoder"], scales["encoder"])


PARTS = (
    PartConfig("head/kernel", lr_factor=0.1, weight_decay=0.5),
    PartConfig("head/.*", lr_factor=2.0),
)


@pytest.mark.parametrize("parts", [(), PARTS])
def test_one_step_is_the_decoupled_formula(parts) -> None:
    params = parameters()
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    config = OptimizerConfig(1.0, eps=1e-3, weight_decay=0.2, layer_decay=0.5, parts=parts)
    optimizer = adamw(lambda step: 0.1 / (1 + step), config, Model())
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    expected = {name: np.asarray(leaf) for name, leaf in flat(params).items()}
    decays = {name: 0.2 if name.endswith("kernel") else 0.0 for name in expected}
    scales = flat(layer_scales(params, Model(), 0.5))
    if parts:
        decays["head/kernel"] = 0.5
        scales |= {"head/kernel": 0.1, "head/bias": 2.0}
    for step in range(2):
        updates, state = update(gradients, state, params)
        params = jax.tree.map(np.add, params, updates)
        for name, leaf in expected.items():
            # A constant gradient leaves both bias-corrected moments at its own value.
            direction = 0.5 / (0.5 + 1e-3) + decays[name] * leaf
            expected[name] = leaf - 0.1 / (1 + step) * scales[name] * direction
        for name, leaf in flat(params).items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, err_msg=name)


def test_parts_are_found_by_whole_paths_the_first_one_counts() -> None:
    paths = ("head/kernel", "head/bias", "ahead/x")
    assert [part_of(path, PARTS).lr_factor for path in paths] == [0.1, 2.0, 1.0]
    with pytest.raises(ValueError, match="expected a regular expression, found '\\['"):
        PartConfig("[")
    with pytest.raises(ValueError, match="at least 0, found -1.0 and None"):
        PartConfig("head/.*", lr_factor=-1.0)


def test_groups_are_found_through_boxes_of_logical_axes() -> None:
    def boxed(leaf: jax.Array) -> nn.LogicallyPartitioned:
        return nn.LogicallyPartitioned(leaf, names=(None,) * leaf.ndim)

    params = jax.tree.map(boxed, parameters())
    optimizer = adamw(0.1, OptimizerConfig(1.0, layer_decay=0.5), Model())
    updates, _ = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
