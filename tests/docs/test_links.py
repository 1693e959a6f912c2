"""Every page is linked from another one, every link leads somewhere, and every page is in the site."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from tests.support.sources import ROOT

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "data").rglob("*.md")),
]
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(
    r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\""
)
_HEADING = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)


def links_of(page: Path) -> list[str]:
    """Targets of the page's links and pictures, outside code."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    return [found[1] or found[2] for found in _LINK.finditer(text)]


def anchors_of(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub and the site make them."""
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain)))
    return found


def inner_links(page: Path) -> list[tuple[str, Path, str]]:
    """Links within the repository: as written, the file, the anchor."""
    made = []
    for link in links_of(page):
        if not re.match(r"[a-z]+:", link):
            name, _, anchor = link.partition("#")
            target = page if not name else Path(os.path.normpath(page.parent / name))
            made.append((link, target, anchor))
    return made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    dead = [link for link, target, _ in inner_links(page) if not target.exists()]
    assert not dead
    astray = [
        link
        for link, target, anchor in inner_links(page)
        if anchor and target.suffix == ".md" and anchor not in anchors_of(target)
    ]
    assert not astray


def test_every_page_is_linked_from_another_page() -> None:
    linked = {target for page in PAGES for _, target, _ in inner_links(page) if target != page}
    folders = {target for target in linked if target.is_dir()}
    alone = [
        str(page.relative_to(ROOT))
        for page in DOCS.rglob("*.md")
        if page not in linked and page.parent not in folders
    ]
    assert not alone, "linked from no other page"


def test_the_site_lists_every_page_and_nothing_else() -> None:
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w./-]+\.md", yaml.dump(yaml.safe_load(text)["nav"])))
    here = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert named == here


def test_llms_txt_names_pages_that_are_there() -> None:
    named = re.findall(r"\]\(([^)]+)\)", (ROOT / "llms.txt").read_text(encoding="utf-8"))
    assert named and not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.zh.md", *sorted((DOCS / "zh").rglob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_chinese_line_does_not_break_inside_a_sentence(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))  # a browser shows a blank there
    assert not re.findall(r".{10}[一-鿿]\n[一-鿿].{10}", text)
