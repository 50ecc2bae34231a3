"""Pages that lead somewhere: no dead links, no page that the index forgets."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def links(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    local = [target for target in links(page) if target and "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_index_lists_every_page():
    listed = {(ROOT / "docs" / target).resolve() for target in links(ROOT / "docs/README.md")}
    assert [
        page.name for page in PAGES if page.resolve() not in listed | {ROOT / "docs/README.md"}
    ] == []
