import dataclasses
import re
from pathlib import Path

from internvideo_jax.launch.config_reference import config_reference, documented

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_what_the_code_says():
    advice = "python -m internvideo_jax.launch.config_reference > docs/config.md"
    assert PAGE.read_text("utf-8") == config_reference(), advice


def test_every_field_has_a_meaning():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ?([^|]*) \|$", config_reference(), re.MULTILINE)
    assert {"new_head", "classes", "validation_share", "lr", "cutmix_alpha", "ratio"} <= {
        name for name, _ in rows
    }
    assert [name for name, meaning in rows if not meaning.strip()] == []


def test_fields_that_are_inherited_are_explained_by_whom_they_are_from():
    @dataclasses.dataclass
    class Base:
        """Something.

        Attributes:
          size: how large it is,
            in pixels.
        """

        size: int

    @dataclasses.dataclass
    class Derived(Base):
        """Something more.

        Attributes:
          name: its name.

        No attribute: this.
        """

        name: str

    assert documented(Derived) == {"size": "how large it is, in pixels.", "name": "its name."}
