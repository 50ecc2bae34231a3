"""Tables as data: stacking, nesting, completeness."""

import pytest

from internvideo_jax.convert.engine import rules
from internvideo_jax.convert.engine.family import all_families, family_of
from internvideo_jax.convert.engine.plan import target_shapes
from internvideo_jax.convert.engine.transforms import LINEAR

TABLES = {
    f"{family.name} {architecture}": table
    for family in all_families()
    for architecture, table in family.tables.items()
    if isinstance(table, rules.Table)
}


def test_a_stacked_parameter_has_keys_for_each_layer():
    table = rules.Table((rules.rule("blocks/fc/kernel", "blocks.{layer}.fc.weight", LINEAR),))
    found = rules.assignments(table, {"params/blocks/fc/kernel": (3, 4, 5)})
    assert [a.index for a in found] == [0, 1, 2]
    assert [a.keys for a in found] == [(f"blocks.{i}.fc.weight",) for i in range(3)]
    assert {a.shapes for a in found} == {((4, 5),)}
    assert {a.source_shapes for a in found} == {((5, 4),)}


def test_nested_rules_keep_their_collection():
    nested = rules.nested(
        (rules.rule("a/kernel", "a"), rules.Rule(("batch_stats/n/mean",), ("m",))), "x"
    )
    assert [r.targets[0] for r in nested] == ["params/x/a/kernel", "batch_stats/x/n/mean"]


def test_ignore_rules_match_whole_keys():
    ignore = rules.Ignore(r"decoder\..*", "decoder")
    assert ignore.matches("decoder.0.weight")
    assert not ignore.matches("my.decoder.0.weight")


def test_every_parameter_of_every_model_has_keys(tiny):
    architecture, config = tiny
    targets = target_shapes(config)
    table = family_of(architecture).table(architecture, config)
    found = rules.assignments(table, targets)
    assert {target for a in found for target in a.targets} == set(targets)
    keys = [key for a in found for key in a.keys]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", TABLES)
def test_no_two_rules_of_a_table_make_the_same_parameter_or_read_the_same_key(name):
    targets = [target for rule in TABLES[name].rules for target in rule.targets]
    assert len(targets) == len(set(targets))
    keys = [key for rule in TABLES[name].rules for key in rule.keys]
    assert len(keys) == len(set(keys))


def test_every_ignore_rule_says_why():
    for table in TABLES.values():
        assert all(len(ignore.reason) > 10 for ignore in table.ignored)


def test_a_parameter_without_rule_is_a_fault_of_the_table():
    with pytest.raises(KeyError, match="params/new"):
        rules.assignments(rules.Table(()), {"params/new": (3,)})
