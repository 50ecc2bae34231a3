import dataclasses

import jax
import numpy as np
import pytest

from internvideo_jax import models
from internvideo_jax.models.decoder_lm import DecoderLM
from internvideo_jax.models.llama_text import LlamaText, internvl_c_text
from internvideo_jax.nn.lora import LoRAConfig
from tests.small_models import DECODER_LM as CONFIG
from tests.small_models import LLAMA_TEXT as TEXT

IDS = np.random.default_rng(0).integers(1, 30, (2, 7))


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(DecoderLM(CONFIG))


def test_a_token_does_not_see_what_follows(variables, run):
    changed = IDS.copy()
    changed[:, 4:] = 3
    tokens = run(DecoderLM(CONFIG), variables, np.concatenate([IDS, changed])).tokens
    difference = np.abs(tokens[:2] - tokens[2:]).max((0, 2))
    assert difference[:4].max() < 1e-5 < 1e-3 < difference[4:].min()


def test_a_cache_gives_what_the_whole_text_gives(variables, run):
    """Prompts of 3 and 5 tokens are read at once, the rest one by one."""
    model = DecoderLM(CONFIG)
    whole = run(model, variables, IDS).tokens
    lengths = np.array([3, 5])
    out = run(model, variables, IDS[:, :5], lengths, cache=model.empty_cache(2, 9))
    rows = np.arange(2)
    np.testing.assert_allclose(out.tokens[rows, lengths - 1], whole[rows, lengths - 1], atol=1e-5)
    cache = out.cache
    step_on = jax.jit(lambda ids, cache: model.apply(variables, ids, cache=cache))
    for step in range(2):
        out = step_on(IDS[rows, lengths + step][:, None], cache)
        cache = out.cache
        np.testing.assert_allclose(out.tokens[:, 0], whole[rows, lengths + step], atol=1e-5)
    assert cache.lengths.tolist() == [5, 7]


def test_grouped_heads_are_repeated_heads(variables, run):
    params = jax.tree.map(np.asarray, variables["params"])
    full = dataclasses.replace(CONFIG, num_kv_heads=4)
    attn = dict(params["blocks"]["attn"])
    for name in ("k", "v"):
        attn[name] = jax.tree.map(lambda x: np.repeat(x, 2, axis=-2), attn[name])
    repeated = {"params": params | {"blocks": params["blocks"] | {"attn": attn}}}
    outputs = run(DecoderLM(CONFIG), variables, IDS), run(DecoderLM(full), repeated, IDS)
    np.testing.assert_allclose(outputs[0].tokens, outputs[1].tokens, atol=1e-5)


def test_heads(variables, random_variables, run):
    tokens = run(DecoderLM(CONFIG), variables, IDS).tokens
    assert run(DecoderLM(CONFIG), variables, tokens, method="logits").shape == (2, 7, 30)
    tied = DecoderLM(dataclasses.replace(CONFIG, head="tied"))
    own = random_variables(tied)
    logits = run(tied, own, tokens, method="logits")
    table = own["params"]["embed"]["embedding"]
    np.testing.assert_allclose(logits, tokens @ table.T, rtol=1e-5, atol=1e-5)
    without = DecoderLM(dataclasses.replace(CONFIG, head="none"))
    with pytest.raises(ValueError, match="a head"):
        run(without, random_variables(without), tokens, method="logits")


def test_the_text_tower_has_the_published_number_of_parameters():
    shapes = models.abstract_variables(LlamaText(internvl_c_text()))
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 6_684_028_928


def test_a_text_is_its_last_token_that_is_no_padding(random_variables, run):
    model = LlamaText(TEXT)
    variables = random_variables(model)
    ids = IDS.copy()
    ids[1, 4:] = 0
    out = run(model, variables, ids)
    last = out.tokens[[0, 1], [6, 3]]
    np.testing.assert_allclose(out.pooled, last @ variables["params"]["projection"], atol=1e-5)


def test_adapters_lie_in_the_layers_they_name(random_variables):
    lora = LoRAConfig(rank=3, alpha=6, targets=("k", "proj", "down"))
    model = LlamaText(dataclasses.replace(TEXT, lm=dataclasses.replace(TEXT.lm, lora=lora)))
    blocks = random_variables(model)["params"]["lm"]["blocks"]
    assert blocks["attn"]["k"]["lora_b"].shape == (2, 3, 2, 4)
    assert blocks["attn"]["proj"]["lora_a"].shape == (2, 4, 4, 3)
    assert blocks["mlp"]["down"]["lora_a"].shape == (2, 24, 3)
    assert "lora_a" not in blocks["attn"]["q"]
    assert model.is_decayed("lm/blocks/attn/k/lora_b")


def test_layers_and_decay():
    model = LlamaText(TEXT)
    assert model.layer_of("lm/embed/embedding") == 0
    assert list(model.layer_of("lm/blocks/mlp/up/kernel")) == [1, 2]
    assert model.layer_of("projection") == model.layer_of("lm/norm/scale") == 3
    assert model.is_decayed("projection")
    assert not model.is_decayed("lm/blocks/attn/q/bias")


def test_head_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="key-value heads"):
        dataclasses.replace(CONFIG, num_kv_heads=3)
