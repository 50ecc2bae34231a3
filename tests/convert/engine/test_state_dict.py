"""State dicts to variables and back."""

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from internvideo_jax.convert.engine.plan import export_plan, target_shapes
from internvideo_jax.convert.engine.state_dict import target_dtypes, to_state_dict, to_tree


def test_a_round_trip_is_exact_for_every_model(tiny, make_state, plan_of):
    config = tiny
    state = make_state(config)
    made = plan_of(state, config)
    variables = to_tree(state, made)
    flat = traverse_util.flatten_dict(variables, sep="/")
    assert {path: x.shape for path, x in flat.items()} == target_shapes(config)
    back = to_state_dict(jax.tree.map(jax.numpy.asarray, variables), made)
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_half_precision_stays_what_it_is(tiny_state, plan_of):
    config, state = tiny_state("videomae", dtype=ml_dtypes.bfloat16)
    made = plan_of(state, config)
    variables = to_tree(state, made)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(ml_dtypes.bfloat16)}
    for key, array in to_state_dict(variables, made).items():
        assert array.dtype == state[key].dtype
        np.testing.assert_array_equal(array, state[key])


def test_a_tree_of_some_gradients_maps_alike(configs):
    config = configs["linear"]
    made = export_plan(config)
    gradients = {"params": {"head": {"kernel": np.arange(140, dtype=np.float32).reshape(20, 7)}}}
    state = to_state_dict(gradients, made)
    assert state.keys() == {"head.weight"}
    np.testing.assert_array_equal(state["head.weight"], np.arange(140).reshape(20, 7).T)


def test_initial_values_take_the_commonest_dtype(tiny_state, plan_of):
    config, state = tiny_state("linear", dtype=np.float16)
    del state["fc_norm.weight"], state["fc_norm.bias"]
    variables = to_tree(state, plan_of(state, config))
    assert variables["params"]["fc_norm"]["scale"].dtype == np.float16
    np.testing.assert_array_equal(variables["params"]["fc_norm"]["scale"], np.ones(20))


def test_a_parameter_of_two_dtypes_is_an_error(tiny_state, plan_of):
    config, state = tiny_state("encoder")
    state["blocks.1.norm1.weight"] = state["blocks.1.norm1.weight"].astype(np.float16)
    made = plan_of(state, config)
    with pytest.raises(ValueError, match=r"blocks\.1\.norm1\.weight is float16"):
        target_dtypes(made, {key: array.dtype for key, array in state.items()})


def test_dtypes_that_models_do_not_have_are_an_error(tiny_state, plan_of):
    config, state = tiny_state("encoder")
    state["cls_token"] = state["cls_token"].astype(np.int8)
    state["pos_embed"] = state["pos_embed"].astype(np.float64)
    with pytest.raises(ValueError, match="cls_token is int8, pos_embed is float64"):
        to_tree(state, plan_of(state, config))
