"""What the towers of text and sound answer about themselves."""

import flax.linen as nn
import jax
import pytest

from internvideo_jax import models
from internvideo_jax.parallel.rules import DEFAULT_RULES
from tests.models.test_architecture import product_flops
from tests.small_models import TOWERS


@pytest.mark.parametrize("name", TOWERS)
def test_every_parameter_has_axes_with_rules_a_decay_and_a_layer(name):
    module = models.build(TOWERS[name])
    boxed = models.abstract_variables(module, boxed=True)["params"]
    known = {None, *(axis for axis, _ in DEFAULT_RULES)}
    leaves = jax.tree.leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    for path, leaf in leaves:
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        assert len(leaf.names) == leaf.value.ndim, text
        assert known.issuperset(leaf.names), text
        assert isinstance(module.is_decayed(text), bool)
        layer = module.layer_of(text)
        assert ("blocks/" in text) == (not isinstance(layer, int)), text
        assert isinstance(layer, int) or layer.shape == leaf.value.shape[:1]


@pytest.mark.parametrize("name", TOWERS)
def test_flops_are_those_of_the_traced_model(name):
    module = models.build(TOWERS[name])
    variables = models.abstract_variables(module)

    def forward(variables, *inputs):
        output = module.apply(variables, *inputs)
        if name == "bert":
            return output, module.apply(variables, output.tokens, method="mlm_logits")
        if name == "decoder_lm":
            return output, module.apply(variables, output.tokens, method="logits")
        return output

    traced = product_flops(jax.make_jaxpr(forward)(variables, *module.example_inputs()).jaxpr)
    parts = module.flops()
    # The only convolution is no product.
    assert sum(parts.values()) - parts.get("pos_conv", 0) == traced
