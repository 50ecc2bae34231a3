"""Tables as data: stacking, nesting, completeness."""

import pytest

from internvideo_jax.convert.engine import rules
from internvideo_jax.convert.engine.family import all_families
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


def test_ignore_rules_match_whole_keys():
    ignore = rules.Ignore(r"decoder\..*", "decoder")
    assert ignore.matches("decoder.0.weight")
    assert not ignore.matches("my.decoder.0.weight")


@pytest.mark.parametrize("name", TABLES)
def test_no_two_rules_of_a_table_make_the_same_parameter_or_read_the_same_key(name):
    targets = [target for rule in TABLES[name].rules for target in rule.targets]
    assert len(targets) == len(set(targets))
    keys = [key for rule in TABLES[name].rules for key in rule.keys]
    assert len(keys) == len(set(keys))


def test_a_parameter_without_rule_is_a_fault_of_the_table():
    with pytest.raises(KeyError, match="params/new"):
        rules.assignments(rules.Table(()), {"params/new": (3,)})
