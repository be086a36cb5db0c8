"""What people read is true: generated parts are up to date, the example is judged, links lead somewhere."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

from bench import checking, docs, grid, machine

EXAMPLE = ROOT / "docs/adding-an-implementation.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "DESIGN.md")] + sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^```python\n# attn/impl/(?P<name>\w+)\.py\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!\w+:)(?P<path>[^)#\s]*)(?:#(?P<part>[^)\s]*))?\)")


def test_generated_parts_are_up_to_date() -> None:
    assert docs.fill(write=False, root=ROOT) == []


def test_the_example_of_a_new_row_is_judged_right(tmp_path: Path) -> None:
    found = _BLOCK.search(EXAMPLE.read_text(encoding="utf-8"))
    assert found, f"{EXAMPLE.name} has no python block that begins with # attn/impl/NAME.py"
    path = tmp_path / f"{found['name']}.py"
    path.write_text(found["code"], encoding="utf-8")
    params = grid.load(ROOT / "params.yaml")
    report = checking.check(path, params, machine.identity(params))
    assert report["status"] == "ok", report["reason"]
    judged = [case for case in report["cases"] if case["status"] == "ok"]
    assert len(judged) > 10, "so few cases fit what it declares that it is hardly judged"


def test_the_readme_names_both_commands_and_the_makefile_has_them() -> None:
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    for command in ("bench", "test"):
        assert re.search(rf"^make {command}\b", readme, re.MULTILINE)
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_its_heading(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in _LINK.finditer(text):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        assert target.exists(), f"{page.name}: {link[0]}"
        if link["part"]:
            assert link["part"] in _anchors(target), f"{page.name}: {link[0]}"


def _anchors(page: Path) -> set[str]:
    """Of each heading, as GitHub names it."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
