"""Families: found by walking, and the only place that names an architecture."""

from pathlib import Path

from internvideo_jax.convert import engine
from internvideo_jax.convert.engine.family import all_families, family_of
from internvideo_jax.models import ARCHITECTURES


def test_names_and_kinds_are_unique():
    names = [family.name for family in all_families()]
    kinds = [kind for family in all_families() for kind in family.kinds]
    assert len(names) == len(set(names))
    assert len(kinds) == len(set(kinds))


def test_families_make_architectures_that_exist():
    made = {name for family in all_families() for name in family.tables}
    assert made <= ARCHITECTURES.keys()
    assert all(name in family_of(name).tables for name in made)


def test_the_engine_names_no_architecture_and_no_family():
    names = {*ARCHITECTURES, *(family.name for family in all_families())}
    words = {f'"{name}"' for name in names} | {
        architecture.config_cls.__name__ for architecture in ARCHITECTURES.values()
    }
    for path in Path(engine.__path__[0]).glob("*.py"):
        text = path.read_text()
        assert not [word for word in words if word in text], path.name
