import dataclasses

import jax
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.models.bert import Bert, bert_large_fusion
from tests.small_models import BERT as CONFIG

IDS = np.array([[1, 5, 7, 2], [1, 9, 0, 0]])
MASK = (IDS != 0).astype(int)
STATES = np.random.default_rng(0).normal(size=(2, 3, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(Bert(CONFIG))


def test_the_preset_has_the_published_number_of_parameters():
    shapes = models.abstract_variables(Bert(bert_large_fusion()))
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 360_108_858


def test_text_then_fusion_is_multi_modal(variables, run):
    model = Bert(CONFIG)
    whole = run(model, variables, IDS, MASK, STATES, hidden_layers=(0, 1, 2))
    text = run(model, variables, IDS, MASK, mode="text", hidden_layers=(1,))
    fusion = run(model, variables, text.tokens, MASK, STATES, mode="fusion", hidden_layers=(2,))
    np.testing.assert_allclose(fusion.tokens, whole.tokens, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fusion.embedded, text.tokens)
    np.testing.assert_array_equal(whole.hidden_states[1], text.hidden_states[0])
    np.testing.assert_array_equal(whole.hidden_states[2], whole.tokens)


def test_what_masks_hide_does_not_matter(variables, run):
    states_mask = np.array([[1, 1, 0], [1, 1, 1]])
    other_ids, other_states = IDS.copy(), STATES.copy()
    other_ids[1, 2:] = 17
    other_states[0, 2] += 5
    pairs = [(IDS, other_ids), (MASK, MASK), (STATES, other_states), (states_mask, states_mask)]
    both = [np.concatenate(pair) for pair in pairs]
    tokens = run(Bert(CONFIG), variables, *both).tokens * both[1][..., None]
    np.testing.assert_allclose(tokens[:2], tokens[2:], rtol=1e-5, atol=1e-6)
    unmasked = run(Bert(CONFIG), variables, both[0], None, both[2]).tokens
    assert np.abs(unmasked[:2] - unmasked[2:])[:, 0].max(-1).min() > 1e-2


@pytest.mark.parametrize("fusion_layer", [0, 3])
def test_a_stack_may_be_all_text_or_all_fusion(fusion_layer, random_variables, run):
    cross_width = 12 if fusion_layer == 0 else None
    config = dataclasses.replace(CONFIG, fusion_layer=fusion_layer, cross_width=cross_width)
    model = Bert(config)
    variables = random_variables(model)
    text = run(model, variables, IDS, MASK, mode="text", hidden_layers=tuple(range(fusion_layer)))
    assert len(text.hidden_states) == fusion_layer
    fusion = run(model, variables, text.tokens, MASK, STATES, mode="fusion")
    assert (fusion.tokens == text.tokens).all() == (fusion_layer == 3)
    assert ("text_blocks" if fusion_layer == 0 else "fusion_blocks") not in model.flops()


def test_dropout_is_drawn_in_training(variables):
    def draw(key):
        options = {"mode": "text", "deterministic": False, "rngs": {"dropout": key}}
        return Bert(CONFIG).apply(variables, IDS, MASK, **options).tokens

    first, second = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 2))
    assert np.abs(first - second).max() > 1e-2


def test_what_does_not_fit_is_refused(variables, run):
    model = Bert(CONFIG)
    with pytest.raises(ValueError, match="expected states"):
        run(model, variables, IDS, MASK)
    with pytest.raises(ValueError, match=r"layers in \[0, 2\)"):
        run(model, variables, IDS, MASK, mode="text", hidden_layers=(2,))
    with pytest.raises(ValueError, match="at most 8 tokens"):
        run(model, variables, np.ones((1, 9), int), mode="text")
    for changes, named in (
        ({"fusion_layer": 4}, "fusion_layer"),
        ({"cross_width": None}, "cross_width"),
        ({"num_heads": 3}, "heads"),
    ):
        with pytest.raises(ValueError, match=named):
            dataclasses.replace(CONFIG, **changes)


def test_layers_and_decay_follow_the_released_groups():
    model = Bert(CONFIG)
    assert model.layer_of("embeddings/word/embedding") == 0
    assert list(model.layer_of("text_blocks/attn/q/kernel")) == [1, 2]
    assert list(model.layer_of("fusion_blocks/cross_attn/q/bias")) == [3]
    assert model.layer_of("mlm_head/bias") == 4
    assert model.is_decayed("embeddings/word/embedding")
    assert not model.is_decayed("text_blocks/attn/q/bias")
